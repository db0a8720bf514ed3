//! Losses. Their value is the true one; unit scaling sets their gradient absolutely.

use crate::scales::positive;
use crate::{Error, Parametrisation, Result, Scales};
use onesigma_graph::{Graph, Op, ReduceKind, Role, ValueId};

/// Scales of the cross-entropy of `n` positions over `classes`, `mean` or sum: the output is the
/// true loss; the gradient is `(softmax(m x) - onehot) V/sqrt(V-1)` for mean and sum alike, without
/// `1/n` and `m`. The plain gradient contains both, so `beta = V/sqrt(V-1) / m`, times `n` for the
/// mean. Source: unit-scaling 0.3.5 `cross_entropy`; arXiv 2303.11257, appendix G.
///
/// # Errors
/// [`Error::Argument`] for a `mult` that is not positive or fewer than two classes.
pub fn cross_entropy_scales(n: usize, classes: usize, mult: f64, mean: bool) -> Result<Scales> {
    positive("cross_entropy", "mult", mult)?;
    if classes < 2 {
        return Err(Error::Argument {
            op: "cross_entropy",
            argument: "classes",
            found: classes.to_string(),
            expected: "at least 2".to_owned(),
        });
    }
    let classes = classes as f64;
    let positions = if mean { n as f64 } else { 1.0 };
    let beta = positions * classes / (classes - 1.0).sqrt() / mult;
    Ok(Scales { alpha: 1.0, beta: vec![beta] })
}

/// `-ln softmax(mult logits)[target]`, mean or sum: `logits [.., classes]`, `targets U32 [..]`, a
/// scalar. Scales: [`cross_entropy_scales`]; regular: 1.
///
/// # Errors
/// [`Error::Graph`] for shapes that do not fit; as [`cross_entropy_scales`].
pub fn cross_entropy(
    graph: &mut Graph,
    p: Parametrisation,
    logits: ValueId,
    targets: ValueId,
    mult: f64,
    mean: bool,
) -> Result<ValueId> {
    positive("cross_entropy", "mult", mult)?;
    let shape = graph.shape(logits);
    let (n, classes) = (shape.rows(), shape.last());
    let scales = p.scheme().loss.choose(|| cross_entropy_scales(n, classes, mult, mean))?;
    Ok(graph
        .op(Op::CrossEntropy { mult, mean }, &[logits, targets])
        .alpha(scales.alpha)
        .beta(&scales.beta)
        .named("cross_entropy")
        .one()?)
}

/// Scales of the squared error of `n` elements: the output is the true loss; the gradient is
/// `2 (x - t)/sqrt 8` for mean and sum alike, its negative for the target. Source: unit-scaling
/// 0.3.5 `mse_loss`.
pub fn mse_loss_scales(n: usize, mean: bool) -> Scales {
    let beta = if mean { n as f64 } else { 1.0 } / 8.0_f64.sqrt();
    Scales { alpha: 1.0, beta: vec![beta; 2] }
}

/// Mean or sum of `(x - target)^2`, operands of one shape; a scalar. Scales: [`mse_loss_scales`];
/// regular: 1.
///
/// # Errors
/// [`Error::Argument`] for operands of different shapes.
pub fn mse_loss(
    graph: &mut Graph,
    p: Parametrisation,
    x: ValueId,
    target: ValueId,
    mean: bool,
) -> Result<ValueId> {
    let shape = graph.shape(x).clone();
    if *graph.shape(target) != shape {
        return Err(Error::Argument {
            op: "mse_loss",
            argument: "target",
            found: graph.shape(target).to_string(),
            expected: format!("the shape {shape} of the prediction"),
        });
    }
    let n = shape.numel();
    let scales = p.scheme().loss.choose(|| Ok(mse_loss_scales(n, mean)))?;
    let weight = if mean { 1.0 / n.max(1) as f64 } else { 1.0 };
    let axes: Vec<isize> = (0..shape.rank() as isize).collect();
    let square = |x: &[onesigma_graph::expr::Term]| (x[0].clone() - x[1].clone()).square() * weight;
    Ok(graph
        .reduce(ReduceKind::Sum, &[x, target], &axes, false, square)?
        .alpha(scales.alpha)
        .beta(&scales.beta)
        .role(Role::Statistic)
        .named("mse_loss")
        .one()?)
}
