//! Parametrisations: which scales the layers of this crate carry, as data.
//!
//! A parametrisation is one [`Scheme`]: a table of choices that layers, models and training read.
//! No layer asks which parametrisation it is in.
//!
//! | | `regular` | `unit` | `u-mup` | `mu-s` |
//! | --- | --- | --- | --- | --- |
//! | source | | arXiv 2303.11257 | arXiv 2407.17465 | arXiv 2502.05967 |
//! | weights start with | the model's own deviation | 1 | 1 | 1 |
//! | ops carry | no scales | ideal scales | ideal scales | those of layers and sums, the same both ways |
//! | constraint on non-cut edges | | `gmean` | `to_output_scale` | |
//! | readout multiplies by | 1 | `fan_in^-1/2` | `fan_in^-1` | `fan_in^-1` |
//! | attention logits | `1/sqrt d` | `1/sqrt d` | `1/d` | `1/sqrt d` |
//! | residual branches | plain sum | running mean | depth-aware | fixed tau |
//! | norm of a branch | at its start | at its start | at its start | at its end |
//! | learning rates | one | one | `fan_in^-1/2`, `depth^-1/2` | `fan_in^-1/2` for hidden weights |

use crate::{Constraint, LearningRateRule, Linear, ResidualRule, Result, Scales};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Which scales the layers of this crate carry. One model definition serves all of them.
///
/// ```
/// use onesigma_ops::Parametrisation;
///
/// let p: Parametrisation = "u-mup".parse()?;
/// assert!(p.is_scaled() && !Parametrisation::Regular.is_scaled());
/// # Ok::<(), onesigma_ops::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Parametrisation {
    /// Every scale 1: the usual network.
    #[default]
    Regular,
    /// Unit scaling as first published (arXiv 2303.11257).
    Unit,
    /// Unit-scaled maximal update parametrisation, u-muP (arXiv 2407.17465): unit scaling with
    /// multipliers and learning rates that carry over from width to width. The rules of the
    /// `unit-scaling` library since 0.2.
    #[serde(rename = "u-mup")]
    UMup,
    /// Simplified unit scaling, muS (arXiv 2502.05967): exact gradients, norms at the end of
    /// branches.
    #[serde(rename = "mu-s")]
    MuS,
}

/// Which of the scales that a rule gives an op carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OpScales {
    /// None: all 1.
    Plain,
    /// The rule's forward and backward scales.
    Ideal,
    /// The rule's forward scale, both ways: gradients are the true ones of the scaled op.
    Exact,
}

impl OpScales {
    /// The scales that this choice makes of a rule's.
    ///
    /// # Errors
    /// Those of `rule`.
    pub fn choose(self, rule: impl FnOnce() -> Result<Scales>) -> Result<Scales> {
        match self {
            Self::Plain => Ok(Scales::ones()),
            Self::Ideal => rule(),
            Self::Exact => rule().map(Scales::exact),
        }
    }
}

/// Where the norm of a residual branch stands, if the model does not say.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NormPlacement {
    /// At the start of the branch: `x + f(norm(x))`.
    BranchStart,
    /// At the end of the branch: `x + norm(f(x))` ("res-post-norm"), so that every branch adds
    /// unit variance whatever its depth.
    BranchEnd,
}

/// The choices that make a parametrisation.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Scheme {
    /// Name in recipes and on the command line.
    pub name: &'static str,
    /// One line for people.
    pub summary: &'static str,
    /// Whether weights start with standard deviation 1, instead of the model's own.
    pub unit_init: bool,
    /// Linear layers, convolutions and products of activations.
    pub linear: OpScales,
    /// Over the scales of ops on non-cut edges.
    pub constraint: Constraint,
    /// Over those of two layers in a row whose sizes mirror each other (the MLP of a
    /// transformer), so that the products of their forward and backward scales agree anyway.
    pub mirrored: Constraint,
    /// The readout's output is multiplied by `fan_in` to minus this power.
    pub readout_power: f64,
    /// Element-wise functions, softmax, dropout and attention.
    pub activation: OpScales,
    /// Attention logits are divided by the head size to this power.
    pub logit_power: f64,
    /// Sums of two tensors.
    pub sum: OpScales,
    /// Gradients of tables and of the parameters of norms.
    pub parameters: OpScales,
    /// Gradients of losses.
    pub loss: OpScales,
    /// Weights of residual branches.
    pub residual: ResidualRule,
    /// Whether a branch's factor is applied at its start in the backward pass instead of at its
    /// end, so that the branch sees gradients of unit scale.
    pub delayed: bool,
    /// Where the norm of a branch stands.
    pub norm: NormPlacement,
    /// Factors on the learning rate, with Adam-like optimisers and with SGD.
    pub learning_rate: LearningRateRule,
}

impl Scheme {
    /// The usual network.
    pub const REGULAR: Self = Self {
        name: "regular",
        summary: "the usual network, without scales",
        unit_init: false,
        linear: OpScales::Plain,
        constraint: Constraint::None,
        mirrored: Constraint::None,
        readout_power: 0.0,
        activation: OpScales::Plain,
        logit_power: 0.5,
        sum: OpScales::Plain,
        parameters: OpScales::Plain,
        loss: OpScales::Plain,
        residual: ResidualRule::Plain,
        delayed: false,
        norm: NormPlacement::BranchStart,
        learning_rate: LearningRateRule::UNIFORM,
    };

    /// Unit scaling (arXiv 2303.11257, section 5): ideal scales, their geometric mean on non-cut
    /// edges, running-mean residuals. The scales of element-wise functions are the closed forms of
    /// the `unit-scaling` library, which differ from the paper's measured ones by up to 4 %.
    pub const UNIT: Self = Self {
        name: "unit",
        summary: "unit scaling (arXiv 2303.11257)",
        unit_init: true,
        linear: OpScales::Ideal,
        constraint: Constraint::GMean,
        mirrored: Constraint::GMean,
        readout_power: 0.5,
        activation: OpScales::Ideal,
        logit_power: 0.5,
        sum: OpScales::Ideal,
        parameters: OpScales::Ideal,
        loss: OpScales::Ideal,
        residual: ResidualRule::RunningMean,
        delayed: true,
        norm: NormPlacement::BranchStart,
        learning_rate: LearningRateRule::UNIFORM,
    };

    /// u-muP (arXiv 2407.17465, table 2, appendices F and G; unit-scaling 0.3.5).
    pub const U_MUP: Self = Self {
        name: "u-mup",
        summary: "u-muP: unit scaling whose learning rates carry over (arXiv 2407.17465)",
        constraint: Constraint::ToOutputScale,
        mirrored: Constraint::None,
        readout_power: 1.0,
        logit_power: 1.0,
        residual: ResidualRule::DepthAware,
        learning_rate: LearningRateRule::U_MUP,
        ..Self::UNIT
    };

    /// muS (arXiv 2502.05967): one factor `fan_in^-1/2` (readout `1/fan_in`) in all three
    /// products of a layer, norms at the end of branches, fixed tau, nothing else scaled. The
    /// gradient of the loss is brought to unit scale, which the paper leaves open: without it
    /// gradients of a mean over many tokens start below the range of E5M2. Adam-like optimisers
    /// do not see the difference.
    pub const MU_S: Self = Self {
        name: "mu-s",
        summary: "muS: simplified unit scaling for deep models (arXiv 2502.05967)",
        unit_init: true,
        linear: OpScales::Exact,
        constraint: Constraint::ToOutputScale,
        mirrored: Constraint::ToOutputScale,
        readout_power: 1.0,
        activation: OpScales::Plain,
        logit_power: 0.5,
        sum: OpScales::Exact,
        parameters: OpScales::Plain,
        loss: OpScales::Ideal,
        residual: ResidualRule::Fixed,
        delayed: false,
        norm: NormPlacement::BranchEnd,
        learning_rate: LearningRateRule::MU_S,
    };
}

impl Parametrisation {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Regular, Self::Unit, Self::UMup, Self::MuS];

    /// Its choices.
    pub const fn scheme(self) -> &'static Scheme {
        match self {
            Self::Regular => &Scheme::REGULAR,
            Self::Unit => &Scheme::UNIT,
            Self::UMup => &Scheme::U_MUP,
            Self::MuS => &Scheme::MU_S,
        }
    }

    /// Whether weights start with standard deviation 1 and layers carry scales.
    pub const fn is_scaled(self) -> bool {
        self.scheme().unit_init
    }

    /// A hidden linear layer whose input and output lie on a cycle of scaled paths.
    pub const fn hidden(self) -> Linear {
        Linear { scale_power: [0.5; 3], constraint: self.scheme().constraint }
    }

    /// One of two linear layers in a row whose sizes mirror each other.
    pub const fn mirrored(self) -> Linear {
        Linear { scale_power: [0.5; 3], constraint: self.scheme().mirrored }
    }

    /// The readout: hidden states to logits. Its input is a cut edge and keeps its ideal scale.
    pub const fn readout(self) -> Linear {
        let power = self.scheme().readout_power;
        Linear { scale_power: [power, 0.5, 0.5], constraint: Constraint::None }
    }
}

impl fmt::Display for Parametrisation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.scheme().name)
    }
}

impl FromStr for Parametrisation {
    type Err = crate::Error;

    /// Reads what `Display` prints.
    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|p| p.scheme().name == name).ok_or_else(|| {
            let known = Self::ALL.map(|p| p.scheme().name);
            crate::Error::UnknownParametrisation {
                name: name.to_owned(),
                near: crate::nearest(name, &known).map(str::to_owned),
                known: known.join(", "),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_serde() {
        for p in Parametrisation::ALL {
            let name = p.to_string();
            assert_eq!(serde_json::to_value(p).expect("a word"), name.as_str());
            assert_eq!(name.parse::<Parametrisation>().expect("its own name"), p);
        }
        let message = "umup".parse::<Parametrisation>().expect_err("no such name").to_string();
        assert!(
            message.contains("`umup`, did you mean `u-mup`?") && message.contains("u-mup, mu-s"),
            "{message}"
        );
    }

    #[test]
    fn exact_scales_are_the_forward_scale_both_ways() -> Result<()> {
        let layer = Parametrisation::MuS.hidden();
        let scales = Scheme::MU_S.linear.choose(|| layer.scales(16, 64, 9))?;
        assert_eq!(scales, Scales { alpha: 0.25, beta: vec![0.25; 3] });
        let layer = Parametrisation::UMup.mirrored();
        let scales = Scheme::U_MUP.linear.choose(|| layer.scales(16, 64, 9))?;
        assert_eq!(scales.beta, [0.125, 1.0 / 3.0, 1.0 / 3.0]);
        assert_eq!(Scheme::REGULAR.linear.choose(|| layer.scales(16, 64, 9))?, Scales::ones());
        Ok(())
    }
}
