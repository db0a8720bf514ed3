//! Which forward results are kept for the backward pass.

use super::memory_plan::root;
use crate::{Graph, Op, Role, ValueId};

/// Whether a value is a gradient.
fn is_gradient(graph: &Graph, value: ValueId) -> bool {
    matches!(graph.value(value).role, Role::ActivationGrad | Role::WeightGrad)
}

/// The activations that are made before the first gradient and read by it or after it, in the
/// order in which they are made; views count as what they look at. None without a backward pass.
pub fn saved(graph: &Graph) -> Vec<ValueId> {
    let backward = graph
        .nodes()
        .iter()
        .position(|node| node.outputs.iter().any(|&output| is_gradient(graph, output)));
    let Some(backward) = backward else { return Vec::new() };
    let mut is_saved = vec![false; graph.values().len()];
    for node in &graph.nodes()[backward..] {
        // What a view looks at counts where the view is read.
        if matches!(node.op, Op::Reshape { .. }) {
            continue;
        }
        for &input in &node.inputs {
            is_saved[root(graph, input).index()] = true;
        }
    }
    let is_activation = |value: ValueId| {
        let info = graph.value(value);
        let made_before = info.producer.index() < backward;
        let is_slot = matches!(graph.node(info.producer).op, Op::Slot(_));
        made_before
            && !is_slot
            && matches!(info.role, Role::Activation | Role::SavedActivation)
            && is_saved[value.index()]
    };
    (0..graph.values().len()).map(ValueId::new).filter(|&value| is_activation(value)).collect()
}
