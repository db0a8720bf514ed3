//! Embedding: rows of a table.

use crate::{Parametrisation, Result, Scales};
use onesigma_graph::{Graph, Op, ValueId};

/// Scales of a lookup of `batch` ids in a table of `rows`: output 1, table gradient
/// `sqrt(rows/batch)`, as each row is met `batch/rows` times. Source: unit-scaling 0.3.5
/// `embedding`.
pub fn embedding_scales(rows: usize, batch: usize) -> Scales {
    Scales { alpha: 1.0, beta: vec![(rows.max(1) as f64 / batch.max(1) as f64).sqrt()] }
}

/// Rows of `weight [rows, d]` chosen by `ids U32 [..]`: `[.., d]`. Scales: [`embedding_scales`];
/// regular: 1.
///
/// # Errors
/// [`Error::Graph`](crate::Error::Graph) for operands of another kind.
pub fn embedding(
    graph: &mut Graph,
    p: Parametrisation,
    ids: ValueId,
    weight: ValueId,
) -> Result<ValueId> {
    let rows = graph.shape(weight).dims().first().copied().unwrap_or(1);
    let batch = graph.shape(ids).numel();
    let scales = p.scheme().parameters.choose(|| Ok(embedding_scales(rows, batch)))?;
    Ok(graph
        .op(Op::Gather, &[weight, ids])
        .alpha(scales.alpha)
        .beta(&scales.beta)
        .named("embedding")
        .one()?)
}
