//! Learning rates by kind of parameter, as data.
//!
//! Unit-scaled weights have standard deviation 1 whatever their shape, so one learning rate moves
//! all of them equally; what has to depend on shapes is the effect of a move on the output.

use serde::{Deserialize, Serialize};

/// Kind of a parameter, for learning-rate rules and weight decay.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ParamKind {
    /// Matrix of a hidden layer, `[fan_out, fan_in]`, or kernel, `[fan_out, fan_in, width]`.
    Weight,
    /// Table `[rows, width]` whose rows are looked up.
    Embedding,
    /// Weight of a norm.
    Norm,
    /// Anything that is added, biases of norms too.
    Bias,
    /// Matrix of the readout, `[vocab, width]`.
    Readout,
}

/// The factor `factor fan_in^power` on a learning rate.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct RateFactor {
    /// Factor whatever the shape.
    pub factor: f64,
    /// Power of `fan_in`: the size of all axes but the first, the size itself of a vector.
    pub power: f64,
}

impl RateFactor {
    /// Factor 1.
    pub const ONE: Self = Self { factor: 1.0, power: 0.0 };

    const fn power(power: f64) -> Self {
        Self { factor: 1.0, power }
    }
}

/// Factors on the learning rates of a model's parameters.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct LearningRateRule {
    /// Of hidden weights.
    pub weight: RateFactor,
    /// Of tables; their `fan_in` is their width.
    pub embedding: RateFactor,
    /// Of weights of norms.
    pub norm: RateFactor,
    /// Of biases.
    pub bias: RateFactor,
    /// Of the readout.
    pub readout: RateFactor,
    /// Power of the number of layers of the stack that the parameter is in, over all of these.
    pub depth_power: f64,
}

impl Default for LearningRateRule {
    fn default() -> Self {
        Self::UNIFORM
    }
}

impl LearningRateRule {
    /// 1 for all: regular models, and unit scaling as first published.
    pub const UNIFORM: Self = Self {
        weight: RateFactor::ONE,
        embedding: RateFactor::ONE,
        norm: RateFactor::ONE,
        bias: RateFactor::ONE,
        readout: RateFactor::ONE,
        depth_power: 0.0,
    };

    /// u-muP with Adam or AdamW, and with SGD where the readout is unconstrained (arXiv
    /// 2407.17465, table 2; unit-scaling 0.3.5 `lr_scale_func_adam`): `fan_in^-1/2` for weights and
    /// embeddings (whose `fan_in` is their width), 1 for the others; all times `depth^-1/2`.
    pub const U_MUP: Self = Self {
        weight: RateFactor::power(-0.5),
        embedding: RateFactor::power(-0.5),
        depth_power: -0.5,
        ..Self::UNIFORM
    };

    /// u-muP with SGD where the readout is constrained to its output scale: `fan_in^1/2` for
    /// weights and embeddings, the size for norms and biases, 1 for the readout; all times
    /// `depth^-1/2`.
    pub const U_MUP_SGD_CONSTRAINED: Self = Self {
        weight: RateFactor::power(0.5),
        embedding: RateFactor::power(0.5),
        norm: RateFactor::power(1.0),
        bias: RateFactor::power(1.0),
        readout: RateFactor::ONE,
        depth_power: -0.5,
    };

    /// muS with Adam-like optimisers and Lion (arXiv 2502.05967): `(fan_in/256)^-1/2` for hidden
    /// weights, 1 for the others, whatever the depth. Of the paper's rule only ratios between
    /// widths are fixed; 256 is the width of its smallest models, at which all rates are one.
    pub const MU_S: Self =
        Self { weight: RateFactor { factor: 16.0, power: -0.5 }, ..Self::UNIFORM };

    /// The factor for a parameter of this kind and shape. `depth` is the number of layers of the
    /// stack that the parameter is in, `None` outside of one.
    pub fn factor(&self, kind: ParamKind, shape: &[usize], depth: Option<usize>) -> f64 {
        let own = match kind {
            ParamKind::Weight => self.weight,
            ParamKind::Embedding => self.embedding,
            ParamKind::Norm => self.norm,
            ParamKind::Bias => self.bias,
            ParamKind::Readout => self.readout,
        };
        let fan_in: usize = match shape {
            [size] => *size,
            _ => shape.iter().skip(1).product(),
        };
        let power = |size: usize, power: f64| (size.max(1) as f64).powf(power);
        own.factor * power(fan_in, own.power) * power(depth.unwrap_or(1), self.depth_power)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mu_s_moves_hidden_weights_of_width_256_like_the_rest() {
        let factor = |kind, shape: &[usize]| LearningRateRule::MU_S.factor(kind, shape, Some(8));
        assert_eq!(factor(ParamKind::Weight, &[64, 256]), 1.0);
        assert_eq!(factor(ParamKind::Weight, &[64, 1024]), 0.5);
        assert_eq!(factor(ParamKind::Embedding, &[64, 1024]), 1.0);
        assert_eq!(factor(ParamKind::Readout, &[64, 1024]), 1.0);
    }
}
