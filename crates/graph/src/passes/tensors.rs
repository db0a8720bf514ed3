//! Which tensors of a graph take temporary memory, and who reads them: what scheduling passes ask.

use super::memory_plan::{align, root, slots_of};
use crate::{Graph, Node, Op, SlotId, ValueId};

/// Tensors by the index of the value whose memory it is: a view counts as what it looks at.
#[derive(Debug)]
pub(crate) struct Tensors {
    /// For each value, the tensor that it is or looks at.
    pub root: Vec<usize>,
    /// Temporary bytes of each tensor; 0 for what lies in a slot.
    pub bytes: Vec<usize>,
    /// The slot that a tensor lies in.
    pub slot: Vec<Option<SlotId>>,
    /// Nodes that read each tensor, in order; the number of nodes comes last for one that is
    /// written to a slot.
    pub uses: Vec<Vec<usize>>,
    /// Tensors that each node reads, each once; none for views.
    pub operands: Vec<Vec<usize>>,
}

/// Whether a node takes no time and no memory: a slot, or another view of its operand.
pub(crate) fn is_view(node: &Node) -> bool {
    matches!(node.op, Op::Slot(_) | Op::Reshape { .. })
}

impl Tensors {
    pub(crate) fn new(graph: &Graph) -> Self {
        let count = graph.values().len();
        let root: Vec<usize> =
            (0..count).map(|value| root(graph, ValueId::new(value)).index()).collect();
        let slot = slots_of(graph);
        let bytes = (0..count).map(|value| match slot[value] {
            None if root[value] == value => align(graph.values()[value].bytes()),
            _ => 0,
        });
        let bytes = bytes.collect();
        let mut uses = vec![Vec::new(); count];
        let mut operands = Vec::with_capacity(graph.nodes().len());
        for (at, node) in graph.nodes().iter().enumerate() {
            let mut own: Vec<usize> = Vec::new();
            for &input in node.inputs.iter().filter(|_| !is_view(node)) {
                let tensor = root[input.index()];
                if !own.contains(&tensor) {
                    own.push(tensor);
                    uses[tensor].push(at);
                }
            }
            operands.push(own);
        }
        for &(_, value) in graph.writes() {
            uses[root[value.index()]].push(graph.nodes().len());
        }
        Self { root, bytes, slot, uses, operands }
    }

    /// Whether a tensor is a slot's content from before the entry.
    pub(crate) fn is_slot(&self, graph: &Graph, tensor: usize) -> bool {
        matches!(graph.node(graph.values()[tensor].producer).op, Op::Slot(_))
    }
}
