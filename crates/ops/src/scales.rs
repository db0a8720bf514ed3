//! The scales of one op, and the switch between regular and unit-scaled layers.

use crate::{Constraint, Error, Result};
use serde::{Deserialize, Serialize};

/// Which scales the layers of this crate carry. One model definition serves all of them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Parametrisation {
    /// Every scale 1, attention logits times `1/sqrt(d)`: the usual network.
    #[default]
    Regular,
    /// Unit scaling (arXiv 2303.11257): every tensor near unit variance at initialisation, with
    /// the constants of the `unit-scaling` library 0.3.5.
    Unit,
}

impl Parametrisation {
    /// Whether ops carry scales.
    pub const fn is_scaled(self) -> bool {
        !matches!(self, Self::Regular)
    }

    /// `scales` where ops carry them, else all 1.
    pub(crate) fn choose(self, scales: impl FnOnce() -> Result<Scales>) -> Result<Scales> {
        if self.is_scaled() { scales() } else { Ok(Scales::ones()) }
    }
}

/// `alpha` of an op's output and `beta` of each differentiable operand, in operand order:
/// `y = alpha f(x)`, `dx_i = beta[i] (df/dx_i)^T dy` with the same `dy`.
#[derive(Clone, PartialEq, Debug)]
pub struct Scales {
    /// Forward scale.
    pub alpha: f64,
    /// Backward scales; operands beyond the list have 1.
    pub beta: Vec<f64>,
}

impl Scales {
    /// Scales of a plain op.
    pub const fn ones() -> Self {
        Self { alpha: 1.0, beta: Vec::new() }
    }

    /// Ideal scales with a constraint over `alpha` and the first `constrained` betas.
    ///
    /// # Errors
    /// As [`Constraint::common`].
    pub fn constrained(
        op: &'static str,
        alpha: f64,
        beta: &[f64],
        constrained: usize,
        constraint: Constraint,
    ) -> Result<Self> {
        let mut group = vec![alpha];
        group.extend(&beta[..constrained]);
        let mut scales = Self { alpha, beta: beta.to_vec() };
        if let Some(common) = constraint.common(op, &group)? {
            scales.alpha = common;
            scales.beta[..constrained].fill(common);
        }
        Ok(scales)
    }

    /// Backward scale of operand `n`.
    pub fn beta(&self, n: usize) -> f64 {
        self.beta.get(n).copied().unwrap_or(1.0)
    }
}

/// Log-interpolation: `exp(a ln u + (1 - a) ln v)`, `u` at `a = 1`.
pub fn log_mix(a: f64, u: f64, v: f64) -> f64 {
    (a * u.ln() + (1.0 - a) * v.ln()).exp()
}

/// Refuses factors that are not positive and finite.
pub(crate) fn positive(op: &'static str, argument: &'static str, value: f64) -> Result<()> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    let expected = "a positive finite number".to_owned();
    Err(Error::Argument { op, argument, found: value.to_string(), expected })
}

/// Refuses probabilities outside `[0, 1)`.
pub(crate) fn probability(op: &'static str, argument: &'static str, value: f64) -> Result<()> {
    if (0.0..1.0).contains(&value) {
        return Ok(());
    }
    let expected = "a probability in [0, 1)".to_owned();
    Err(Error::Argument { op, argument, found: value.to_string(), expected })
}
