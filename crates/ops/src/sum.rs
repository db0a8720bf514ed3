//! The sum of several independent tensors, as embeddings are added.

use crate::{Parametrisation, Result, Scales};
use onesigma_graph::{Graph, Op, Shape, ValueId, expr::Expr};

/// Scales of a sum of `numel.len()` tensors that broadcast to `out` elements: output `n^-1/2`;
/// gradient of operand `i` `(out/numel_i)^-1/2`, as a broadcast operand collects that many terms.
/// No constraint: right where every operand is a cut edge. Source: arXiv 2303.11257, table A.2
/// (sum), and unit-scaling 0.3.5 `add` for broadcasting.
pub fn sum_scales(out: usize, numel: &[usize]) -> Scales {
    let beta = numel.iter().map(|&n| (n.max(1) as f64 / out.max(1) as f64).sqrt()).collect();
    Scales { alpha: (numel.len().max(1) as f64).powf(-0.5), beta }
}

/// `alpha (x_1 + .. + x_n)`, broadcast. Scales: [`sum_scales`]; regular: 1.
///
/// # Errors
/// [`Error::Graph`](crate::Error::Graph) if the shapes do not broadcast.
pub fn sum(graph: &mut Graph, p: Parametrisation, operands: &[ValueId]) -> Result<ValueId> {
    let shape = operands.iter().fold(Shape::scalar(), |shape, &operand| {
        shape.broadcast(graph.shape(operand)).unwrap_or(shape)
    });
    let numel: Vec<usize> = operands.iter().map(|&x| graph.shape(x).numel()).collect();
    let scales = p.scheme().sum.choose(|| Ok(sum_scales(shape.numel(), &numel)))?;
    let expr = Expr::new(operands.len(), |x| {
        x.iter()
            .skip(1)
            .fold(x.first().cloned().unwrap_or(0.0.into()), |sum, term| sum + term.clone())
    });
    Ok(graph
        .op(Op::Map { expr, shape }, operands)
        .alpha(scales.alpha)
        .beta(&scales.beta)
        .named("sum")
        .one()?)
}
