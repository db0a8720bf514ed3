//! The hyperbolic tangent, the activation of BERT's pooler.

use crate::{Constraint, Parametrisation, Result, Scales};
use onesigma_graph::{Graph, Op, ValueId, expr::Expr};

/// `E[tanh(z)^2]^-1/2` for a normal `z`.
const OUTPUT: f64 = 1.592_537_419_7;
/// `E[(1 - tanh(z)^2)^2]^-1/2` for a normal `z`.
const GRADIENT: f64 = 1.467_413_591_6;

/// Scales of `tanh(x)`: the reciprocal standard deviations of `tanh(z)` and of its derivative for
/// a normal `z` (arXiv 2303.11257, table A.2: 1.593 and 1.467; here to more digits).
///
/// # Errors
/// As [`Constraint::common`].
pub fn tanh_scales(constraint: Constraint) -> Result<Scales> {
    Scales::constrained("tanh", OUTPUT, &[GRADIENT], 1, constraint)
}

/// `alpha tanh(x)`. Scales: [`tanh_scales`]; regular: 1.
///
/// # Errors
/// As [`tanh_scales`].
pub fn tanh(
    graph: &mut Graph,
    p: Parametrisation,
    x: ValueId,
    constraint: Constraint,
) -> Result<ValueId> {
    let scales = p.scheme().activation.choose(|| tanh_scales(constraint))?;
    let op = Op::Map { expr: tanh_expr(), shape: graph.shape(x).clone() };
    Ok(graph.op(op, &[x]).alpha(scales.alpha).beta(&scales.beta).named("tanh").one()?)
}

pub(crate) fn tanh_expr() -> Expr {
    Expr::new(1, |x| x[0].tanh())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `E[f(z)]` by the trapezoidal rule, which is exact to rounding for such integrands.
    fn mean(f: impl Fn(f64) -> f64) -> f64 {
        let density = |z: f64| (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
        (-12_000..=12_000).map(|n| f64::from(n) / 1000.0).map(|z| f(z) * density(z)).sum::<f64>()
            / 1000.0
    }

    #[test]
    fn the_constants_are_the_integrals() -> Result<()> {
        let scales = tanh_scales(Constraint::None)?;
        let output = mean(|z| z.tanh().powi(2)).powf(-0.5);
        let gradient = mean(|z| (1.0 - z.tanh().powi(2)).powi(2)).powf(-0.5);
        assert!((scales.alpha - output).abs() < 1e-9, "{output}");
        assert!((scales.beta(0) - gradient).abs() < 1e-9, "{gradient}");
        Ok(())
    }
}
