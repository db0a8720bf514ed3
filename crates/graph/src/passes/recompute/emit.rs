//! Schedules as graphs.

use super::super::tensors::{Tensors, is_view};
use crate::{Graph, NodeId, ValueId};

/// Leaves out runs of nodes whose results are not read before they are made anew.
pub(super) fn prune(graph: &Graph, tensors: &Tensors, schedule: &[usize]) -> Vec<usize> {
    let mut needed = vec![false; tensors.root.len()];
    for &(_, value) in graph.writes() {
        needed[tensors.root[value.index()]] = true;
    }
    let mut kept: Vec<usize> = Vec::with_capacity(schedule.len());
    for &node in schedule.iter().rev() {
        let outputs = &graph.nodes()[node].outputs;
        if !outputs.iter().any(|output| needed[output.index()]) {
            continue;
        }
        for output in outputs {
            needed[output.index()] = false;
        }
        for &operand in &tensors.operands[node] {
            needed[operand] = true;
        }
        kept.push(node);
    }
    kept.reverse();
    kept
}

/// The graph that runs the nodes of a schedule in its order, some of them several times: each
/// reads what was made last. A repeated node keeps its random stream, and with it its bits.
pub(super) fn emit(graph: &Graph, schedule: &[usize]) -> Graph {
    let mut emitter = Emitter {
        graph,
        result: graph.successor(),
        made: vec![None; graph.values().len()],
        seen: vec![false; graph.nodes().len()],
    };
    for &node in schedule {
        emitter.run(node);
    }
    for &(slot, value) in graph.writes() {
        let value = emitter.value(value);
        emitter.result.write(slot, value);
    }
    emitter.result.continue_streams_of(graph);
    emitter.result
}

struct Emitter<'g> {
    graph: &'g Graph,
    result: Graph,
    /// What stands for each value, for a view with what it looks at.
    made: Vec<Option<(ValueId, Option<ValueId>)>>,
    seen: Vec<bool>,
}

impl Emitter<'_> {
    fn run(&mut self, at: usize) {
        let graph = self.graph;
        let node = graph.node(NodeId::new(at));
        let inputs = node.inputs.iter().map(|&input| self.value(input)).collect();
        let outputs = self.result.carry(node, graph, inputs);
        if std::mem::replace(&mut self.seen[at], true)
            && let Some(last) = self.result.nodes.last_mut()
        {
            last.name = super::repeated_name(&last.name);
        }
        for (old, new) in node.outputs.iter().zip(outputs) {
            self.made[old.index()] = Some((new, None));
        }
    }

    /// What stands for a value now; slots and views are added when they are first needed.
    fn value(&mut self, old: ValueId) -> ValueId {
        let graph = self.graph;
        let node = graph.node(graph.value(old).producer);
        if !is_view(node) {
            return self.made[old.index()].map_or(old, |(new, _)| new);
        }
        let inputs: Vec<ValueId> = node.inputs.iter().map(|&input| self.value(input)).collect();
        let looks_at = inputs.first().copied();
        match self.made[old.index()] {
            Some((new, at)) if at == looks_at => new,
            _ => {
                let new = self.result.carry(node, graph, inputs)[0];
                self.made[old.index()] = Some((new, looks_at));
                new
            }
        }
    }
}

/// Seconds and number of the runs of a schedule that repeat a node.
pub(super) fn repeated(schedule: &[usize], seconds: &[f64]) -> (usize, f64) {
    let mut seen = vec![false; seconds.len()];
    let again = schedule.iter().filter(|&&node| std::mem::replace(&mut seen[node], true));
    again.fold((0, 0.0), |(count, sum), &node| (count + 1, sum + seconds[node]))
}
