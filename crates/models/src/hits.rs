//! Which predictions are right.

use crate::Result;
use onesigma_graph::expr::Term;
use onesigma_graph::{Graph, ReduceKind, Role, ValueId};

/// 1 where the largest of `logits [.., classes]` is that of `targets U32 [..]`, else 0: `F32 [..]`,
/// a statistic. Of several largest ones any counts; a NaN is never right.
///
/// # Errors
/// [`Error::Graph`](crate::Error::Graph) for shapes that do not fit.
pub fn hits(graph: &mut Graph, logits: ValueId, targets: ValueId) -> Result<ValueId> {
    let shape = graph.shape(targets).clone();
    let column = graph.shape(logits).reduced(&[shape.rank()], true);
    let targets = graph.reshape(targets, column)?;
    let classes = Term::index(shape.rank());
    let own = graph
        .reduce(ReduceKind::Sum, &[logits, targets], &[-1], false, |x| {
            classes.equal(x[1].clone()).select(x[0].clone(), 0.0)
        })?
        .named("own_logit")
        .role(Role::Statistic)
        .one()?;
    let largest = graph
        .reduce(ReduceKind::Max, &[logits], &[-1], false, |x| x[0].clone())?
        .named("largest_logit")
        .role(Role::Statistic)
        .one()?;
    let hit = graph.map(&[own, largest], |x| x[1].less_equal(x[0].clone()))?;
    Ok(hit.named("hit").role(Role::Statistic).one()?)
}
