//! The scales of one op.

use crate::{Constraint, Error, Result};

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

    /// The forward scale for all operands, too: the true gradient of the scaled op.
    pub fn exact(mut self) -> Self {
        self.beta.fill(self.alpha);
        self
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
