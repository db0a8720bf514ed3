//! Cross-entropy over some of the positions.

use crate::{Parametrisation, Result, Scales, cross_entropy_scales};
use onesigma_graph::{Graph, Op, ValueId};

/// Scales of the mean cross-entropy over the positions that a mask counts, `expected` of them on
/// average. The gradient of a counted position is `(softmax(m x) - onehot) V/sqrt(V-1)` times
/// `expected` over their true number: how many there are is known at run time alone, so this ratio
/// is the plain mean's own weight of a batch. Positions that are left out have gradient 0.
///
/// # Errors
/// As [`cross_entropy_scales`].
pub fn masked_cross_entropy_scales(expected: f64, classes: usize, mult: f64) -> Result<Scales> {
    crate::scales::positive("masked_cross_entropy", "expected", expected)?;
    let one = cross_entropy_scales(1, classes, mult, true)?;
    Ok(Scales { alpha: one.alpha, beta: vec![expected * one.beta(0)] })
}

/// `-ln softmax(mult logits)[target]`, the mean over the positions where `mask U32 [..]` is not 0:
/// `logits [.., classes]`, `targets U32 [..]`, a scalar; 0 if no position counts. Scales:
/// [`masked_cross_entropy_scales`]; regular: 1.
///
/// # Errors
/// [`Error::Graph`](crate::Error::Graph) for shapes that do not fit; as
/// [`masked_cross_entropy_scales`].
pub fn masked_cross_entropy(
    graph: &mut Graph,
    p: Parametrisation,
    [logits, targets, mask]: [ValueId; 3],
    mult: f64,
    expected: f64,
) -> Result<ValueId> {
    let classes = graph.shape(logits).last();
    let scales = masked_cross_entropy_scales(expected, classes, mult)?;
    let scales = p.scheme().loss.choose(|| Ok(scales))?;
    Ok(graph
        .op(Op::CrossEntropy { mult, mean: true }, &[logits, targets, mask])
        .alpha(scales.alpha)
        .beta(&scales.beta)
        .named("cross_entropy")
        .one()?)
}
