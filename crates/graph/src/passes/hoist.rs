//! Runs nodes as soon as they free memory.
//!
//! A node that frees more temporary bytes than its results take is run as soon as its operands are
//! there, before the nodes that stood in front of it: the update of a parameter right after its
//! gradient, so that the gradients of all parameters need not wait for the end of the backward
//! pass. An update in place stays behind everything that reads the old content. All other nodes
//! keep their order; no result changes.

use super::Renaming;
use super::tensors::{Tensors, is_view};
use crate::{Graph, NodeId, Op, ValueId};

/// The same nodes in an order that needs no more memory.
pub fn hoist(graph: &Graph) -> Graph {
    let mut pass = Hoist {
        graph,
        tensors: Tensors::new(graph),
        unread: Vec::new(),
        missing: Vec::new(),
        done: vec![false; graph.nodes().len()],
        order: Vec::with_capacity(graph.nodes().len()),
        ready: Vec::new(),
    };
    pass.unread = pass.tensors.uses.iter().map(Vec::len).collect();
    pass.missing = pass.tensors.operands.iter().map(|operands| pass.made_later(operands)).collect();
    for node in 0..graph.nodes().len() {
        if pass.done[node] || is_view(&graph.nodes()[node]) {
            continue;
        }
        pass.run(node);
        while let Some(at) = pass.ready.iter().position(|&node| pass.frees(node)) {
            let node = pass.ready.remove(at);
            pass.run(node);
        }
    }
    in_order(graph, &pass.order)
}

struct Hoist<'g> {
    graph: &'g Graph,
    tensors: Tensors,
    /// Readers of each tensor that have not run.
    unread: Vec<usize>,
    /// Operands of each node that are not made yet.
    missing: Vec<usize>,
    done: Vec<bool>,
    order: Vec<usize>,
    /// Nodes whose operands are all there, in their old order.
    ready: Vec<usize>,
}

impl Hoist<'_> {
    fn made_later(&self, operands: &[usize]) -> usize {
        operands.iter().filter(|&&tensor| !self.tensors.is_slot(self.graph, tensor)).count()
    }

    fn run(&mut self, node: usize) {
        self.done[node] = true;
        self.order.push(node);
        self.ready.retain(|&other| other != node);
        for &operand in &self.tensors.operands[node] {
            self.unread[operand] -= 1;
        }
        for output in &self.graph.nodes()[node].outputs {
            for &reader in &self.tensors.uses[output.index()] {
                let Some(missing) = self.missing.get_mut(reader) else { continue };
                *missing -= 1;
                if *missing == 0 {
                    let at = self.ready.partition_point(|&other| other < reader);
                    self.ready.insert(at, reader);
                }
            }
        }
    }

    /// Whether a node that is ready frees more than it takes and overwrites nothing that another
    /// node is still to read.
    fn frees(&self, node: usize) -> bool {
        let Tensors { bytes, uses, slot, operands, .. } = &self.tensors;
        let last_read = |&&tensor: &&usize| self.unread[tensor] == 1;
        let freed: usize =
            operands[node].iter().filter(last_read).map(|&tensor| bytes[tensor]).sum();
        let outputs = &self.graph.nodes()[node].outputs;
        let taken: usize = outputs.iter().map(|output| bytes[output.index()]).sum();
        let overwrites = |output: &ValueId| {
            let Some(slot) = slot[output.index()] else { return false };
            let contents = self.graph.nodes().iter().filter(|node| node.op == Op::Slot(slot));
            contents.flat_map(|content| &content.outputs).any(|old| {
                let others = uses[old.index()].iter().filter(|&&reader| reader != node);
                others.clone().any(|&reader| self.done.get(reader) != Some(&true))
            })
        };
        freed > taken && !outputs.iter().any(overwrites)
    }
}

/// The graph with its nodes in another order that respects operands; a view comes right before the
/// first node that reads it.
fn in_order(graph: &Graph, order: &[usize]) -> Graph {
    let mut carrier = Carrier {
        graph,
        result: graph.successor(),
        renamed: Renaming::new(graph),
        done: vec![false; graph.nodes().len()],
    };
    for &node in order {
        carrier.carry(node);
    }
    for &(slot, value) in graph.writes() {
        carrier.carry(graph.value(value).producer.index());
        let value = carrier.renamed.get(value);
        carrier.result.write(slot, value);
    }
    carrier.result.continue_streams_of(graph);
    carrier.result
}

struct Carrier<'g> {
    graph: &'g Graph,
    result: Graph,
    renamed: Renaming,
    done: Vec<bool>,
}

impl Carrier<'_> {
    fn carry(&mut self, node: usize) {
        if std::mem::replace(&mut self.done[node], true) {
            return;
        }
        let old = self.graph.node(NodeId::new(node));
        for &input in &old.inputs {
            self.carry(self.graph.value(input).producer.index());
        }
        let outputs = self.result.carry(old, self.graph, self.renamed.all(&old.inputs));
        self.renamed.set_all(&old.outputs, &outputs);
    }
}
