//! Common subexpressions and dead code.
//!
//! Nodes that compute the same from the same operands become one (random nodes only if they share
//! their stream), identities go, and so does what no written slot depends on.

use super::Renaming;
use crate::{Graph, Node, Op, Role, SlotId, ValueId};
use std::collections::HashMap;

/// Removes duplicates and dead nodes.
pub fn clean(graph: &Graph) -> Graph {
    remove_dead(&merge_equal(graph))
}

fn merge_equal(graph: &Graph) -> Graph {
    let mut result = graph.successor();
    let mut renamed = Renaming::new(graph);
    let mut known: HashMap<String, Vec<ValueId>> = HashMap::new();
    for node in graph.nodes() {
        let inputs = renamed.all(&node.inputs);
        if is_identity(graph, node) {
            renamed.set(node.outputs[0], inputs[0]);
            continue;
        }
        let key = key(graph, node, &inputs);
        let outputs = known.entry(key).or_insert_with(|| result.carry(node, graph, inputs)).clone();
        renamed.set_all(&node.outputs, &outputs);
    }
    renamed.writes(graph, &mut result);
    result
}

/// A map or cast that changes neither value nor type. A value's role may be lost with it, so the
/// gradient of a parameter stays.
fn is_identity(graph: &Graph, node: &Node) -> bool {
    let [input] = node.inputs[..] else { return false };
    let (from, to) = (graph.value(input), graph.value(node.outputs[0]));
    let keeps = match &node.op {
        Op::Map { expr, .. } => *expr == crate::expr::Expr::identity(),
        Op::Cast { .. } | Op::Reshape { .. } => true,
        _ => false,
    };
    keeps
        && node.alpha[0] == 1.0
        && from.shape == to.shape
        && from.dtype == to.dtype
        && to.role != Role::WeightGrad
}

/// Everything that decides what a node computes. `Debug` of f64 is exact, so equal keys are equal
/// computations.
fn key(graph: &Graph, node: &Node, inputs: &[ValueId]) -> String {
    let stores: Vec<_> = node
        .outputs
        .iter()
        .map(|&output| {
            let value = graph.value(output);
            (value.dtype, value.conversion, value.role)
        })
        .collect();
    let random = matches!(node.op, Op::Random { .. })
        || node.outputs.iter().any(|&output| is_stochastic(graph, output));
    let stream = random.then_some(node.stream);
    format!("{:?} {inputs:?} {:?} {stores:?} {stream:?}", node.op, node.alpha)
}

fn is_stochastic(graph: &Graph, value: ValueId) -> bool {
    graph.value(value).conversion.random_bits() > 0
}

pub(super) fn remove_dead(graph: &Graph) -> Graph {
    let mut alive = vec![false; graph.values().len()];
    for &(_, value) in graph.writes() {
        alive[value.index()] = true;
    }
    let live_node = |node: &Node, alive: &[bool]| node.outputs.iter().any(|o| alive[o.index()]);
    for node in graph.nodes().iter().rev() {
        if live_node(node, &alive) {
            for input in &node.inputs {
                alive[input.index()] = true;
            }
        }
    }
    let mut result = graph.successor();
    let mut renamed = Renaming::new(graph);
    for node in graph.nodes() {
        if live_node(node, &alive) {
            let outputs = result.carry(node, graph, renamed.all(&node.inputs));
            renamed.set_all(&node.outputs, &outputs);
        }
    }
    renamed.writes(graph, &mut result);
    result
}

/// Slots that an entry reads.
pub fn slots_read(graph: &Graph) -> Vec<SlotId> {
    graph
        .nodes()
        .iter()
        .filter_map(|node| match node.op {
            Op::Slot(slot) => Some(slot),
            _ => None,
        })
        .collect()
}
