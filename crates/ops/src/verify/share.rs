//! Parameters that are used more than once: one constant for all uses.

use super::{Conflict, Flow, locate};
use crate::{Error, Result};
use onesigma_graph::{Graph, NodeId, ValueId};

/// Gives all uses of a parameter, by which `result` depends on it, one constant: the geometric mean
/// of those that they have. Each use keeps its forward scale. An edge of a parameter that is used
/// once is a cut edge; of a shared one (a token table that is the readout's weight, too) it is
/// none, so that its backward scales are not free, and their mean is the nearest that is right.
///
/// # Errors
/// [`Error::CutEdge`] if uses of another value between parameter and result have different
/// constants, or if no op of a use can carry a scale.
pub fn share_parameter(graph: &mut Graph, result: ValueId, parameter: ValueId) -> Result<()> {
    let flow = Flow::new(graph, result, &[parameter])?;
    let ratio = |node: NodeId, operand: usize| flow.ratio(node, operand);
    let Err(conflict) = flow.constants(&ratio) else { return Ok(()) };
    if conflict.value != parameter {
        return Err(Error::CutEdge(Box::new(locate(&flow, &conflict))));
    }
    share(graph, &conflict)
}

/// Settles a conflict at a parameter.
pub(crate) fn share(graph: &mut Graph, conflict: &Conflict) -> Result<()> {
    let n = conflict.uses.len() as f64;
    let mean = conflict.uses.iter().map(|own| own.constant.abs().ln()).sum::<f64>() / n;
    for own in &conflict.uses {
        let Some((id, operand)) = scalable(graph, own.node, own.operand) else { continue };
        let node = graph.node(id);
        let (alpha, mut beta) = (node.alpha.clone(), node.beta.clone());
        beta[operand] *= mean.exp() / own.constant.abs();
        graph.set_scales(id, &alpha, &beta)?;
    }
    Ok(())
}

/// The edge itself, or the first behind views that can carry a scale.
fn scalable(graph: &Graph, node: NodeId, operand: usize) -> Option<(NodeId, usize)> {
    let (mut id, mut operand) = (node, operand);
    while graph.node(id).op.is_movement() {
        let output = graph.node(id).outputs[0];
        let rest = graph.nodes().iter().enumerate().skip(id.index() + 1);
        let mut readers = rest.filter_map(|(at, node)| {
            let operand = node.inputs.iter().position(|input| *input == output)?;
            Some((NodeId::new(at), operand))
        });
        (id, operand) = readers.next()?;
    }
    Some((id, operand))
}
