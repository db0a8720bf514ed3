//! Weighted sums.

use crate::scales::positive;
use crate::{Constraint, Error, Parametrisation, Result, Scales};
use onesigma_graph::{Graph, Op, Shape, ValueId, expr::Expr};

/// Scales of `sum gamma_i x_i` over independent tensors: output `(sum gamma_i^2)^-1/2`, gradient of
/// operand `i` `1/gamma_i` times `(numel_i/out)^1/2`, as a broadcast operand collects `out/numel_i`
/// terms; the constraint over all. Source: arXiv 2303.11257, table A.2 (weighted add) and
/// unit-scaling 0.3.5 `add` for broadcasting.
///
/// # Errors
/// [`Error::Argument`] for weights that are not positive, or as many as operands; as
/// [`Constraint::common`].
pub fn weighted_add_scales(
    out: usize,
    numel: &[usize],
    weights: &[f64],
    constraint: Constraint,
) -> Result<Scales> {
    if weights.len() != numel.len() || weights.is_empty() {
        return Err(Error::Argument {
            op: "weighted_add",
            argument: "weights",
            found: format!("{} for {} operands", weights.len(), numel.len()),
            expected: "one for each of at least one operand".to_owned(),
        });
    }
    for &weight in weights {
        positive("weighted_add", "weights", weight)?;
    }
    let alpha = weights.iter().map(|gamma| gamma * gamma).sum::<f64>().powf(-0.5);
    let share = |n: usize| (n.max(1) as f64 / out.max(1) as f64).sqrt();
    let beta: Vec<f64> = weights.iter().zip(numel).map(|(gamma, &n)| share(n) / gamma).collect();
    let all = beta.len();
    Scales::constrained("weighted_add", alpha, &beta, all, constraint)
}

/// `alpha sum gamma_i x_i`, broadcast: with ideal scales each operand's gradient is the upstream
/// one. Scales: [`weighted_add_scales`], exact in `mu-s`; regular: 1, the plain weighted sum.
///
/// # Errors
/// [`Error::Graph`] if the shapes do not broadcast; as [`weighted_add_scales`].
pub fn weighted_add(
    graph: &mut Graph,
    p: Parametrisation,
    operands: &[ValueId],
    weights: &[f64],
    constraint: Constraint,
) -> Result<ValueId> {
    // Operands that do not broadcast are refused by the op, which names them.
    let shape = operands.iter().fold(Shape::scalar(), |shape, &operand| {
        shape.broadcast(graph.shape(operand)).unwrap_or(shape)
    });
    let numel: Vec<usize> = operands.iter().map(|&x| graph.shape(x).numel()).collect();
    let checked = weighted_add_scales(shape.numel(), &numel, weights, constraint)?;
    let scales = p.scheme().sum.choose(|| Ok(checked))?;
    let expr = Expr::new(operands.len(), |x| {
        let terms = x.iter().zip(weights).map(|(x, &gamma)| x.clone() * gamma);
        terms.reduce(|sum, term| sum + term).unwrap_or_else(|| 0.0.into())
    });
    Ok(graph
        .op(Op::Map { expr, shape }, operands)
        .alpha(scales.alpha)
        .beta(&scales.beta)
        .named("weighted_add")
        .one()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn independent_operands_give_unit_variance_and_take_the_upstream_gradient() -> Result<()> {
        let weights = [0.5, 2.0, 1.0];
        let scales = weighted_add_scales(24, &[24, 24, 6], &weights, Constraint::None)?;
        let variance: f64 = weights.iter().map(|gamma| (scales.alpha * gamma).powi(2)).sum();
        assert!((variance - 1.0).abs() < 1e-12);
        // The plain gradient carries the weight.
        assert_eq!([scales.beta(0) * 0.5, scales.beta(1) * 2.0, scales.beta(2)], [1.0, 1.0, 0.5]);
        let common = weighted_add_scales(24, &[24; 3], &weights, Constraint::ToOutputScale)?;
        assert_eq!(common.beta, [scales.alpha; 3]);
        assert!(weighted_add_scales(24, &[24; 2], &weights, Constraint::None).is_err());
        assert!(weighted_add_scales(24, &[24], &[-1.0], Constraint::None).is_err());
        Ok(())
    }
}
