//! Walks through a graph with a limit on memory: what does not fit is forgotten, and made again
//! when it is needed.
//!
//! The rule that chooses what to forget is that of dynamic tensor rematerialisation (Kirisame et
//! al., arXiv 2006.09616): least time to make it again for each byte and each step of not being
//! needed. As the whole program is known, the distance to the next use stands where that method
//! has the time since the last one.

use super::super::memory_plan::in_place_operand;
use super::super::tensors::{Tensors, is_view};
use crate::Graph;

/// What the walk looks at.
pub(super) struct Walk<'a> {
    pub graph: &'a Graph,
    pub tensors: &'a Tensors,
    /// Seconds of each node.
    pub seconds: &'a [f64],
    /// For each tensor, the tensors made from it.
    pub dependents: &'a [Vec<usize>],
}

/// How a walk decides.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// Bytes of temporary tensors at any time.
    pub bytes: usize,
    /// Seconds of all nodes with their repetitions.
    pub seconds: f64,
    pub weights: Weights,
}

/// What a tensor's cost is divided by to choose which to forget: its bytes and the distance to its
/// next use, with these exponents.
#[derive(Clone, Copy)]
pub(super) struct Weights {
    pub size: f64,
    pub distance: f64,
}

impl Walk<'_> {
    /// The nodes in the order in which they run, some of them several times; views are left out.
    /// `None` if the limits do not suffice.
    pub(super) fn schedule(&self, limits: Limits) -> Option<Vec<usize>> {
        let count = self.tensors.root.len();
        let mut state = State {
            walk: self,
            limits,
            resident: (0..count).map(|t| self.tensors.is_slot(self.graph, t)).collect(),
            locks: vec![0; count],
            used: 0,
            now: 0,
            spent: 0.0,
            schedule: Vec::new(),
            visited: vec![0; count],
            visit: 0,
        };
        let nodes = self.graph.nodes();
        for (at, node) in nodes.iter().enumerate() {
            state.now = at;
            if !is_view(node) {
                state.run(at, None)?;
            }
        }
        Some(state.schedule)
    }

    fn producer(&self, tensor: usize) -> usize {
        self.graph.values()[tensor].producer.index()
    }
}

struct State<'w, 'a> {
    walk: &'w Walk<'a>,
    limits: Limits,
    resident: Vec<bool>,
    /// Nodes under way that read each tensor.
    locks: Vec<u32>,
    used: usize,
    /// The first node of the old order that has not run.
    now: usize,
    spent: f64,
    schedule: Vec<usize>,
    /// The last visit of [`State::cost`] that came to each tensor.
    visited: Vec<u32>,
    visit: u32,
}

impl State<'_, '_> {
    /// Runs a node; the tensor `keep` of its results is locked.
    fn run(&mut self, node: usize, keep: Option<usize>) -> Option<()> {
        let Walk { graph, tensors, seconds, .. } = *self.walk;
        let operands = &tensors.operands[node];
        for &operand in operands {
            if !self.resident[operand] {
                self.run(self.walk.producer(operand), Some(operand))?;
            } else {
                self.locks[operand] += 1;
            }
        }
        self.spent += seconds[node];
        if self.spent > self.limits.seconds {
            return None;
        }
        self.schedule.push(node);
        if node == self.now {
            self.now += 1;
        }
        let mut made = Vec::new();
        for output in graph.nodes()[node].outputs.iter().map(|output| output.index()) {
            if self.resident[output] {
                continue;
            }
            if let Some(operand) = self.in_place(node, output) {
                self.resident[operand] = false;
                self.used -= tensors.bytes[operand];
            }
            self.make_room(tensors.bytes[output])?;
            self.resident[output] = true;
            self.locks[output] += 1;
            self.used += tensors.bytes[output];
            made.push(output);
        }
        for &operand in operands {
            self.locks[operand] -= 1;
            self.drop_unless_needed(operand);
        }
        for output in made {
            if keep != Some(output) {
                self.locks[output] -= 1;
                self.drop_unless_needed(output);
            }
        }
        Some(())
    }

    /// The operand whose memory a result takes over, as the memory plan does it.
    fn in_place(&self, node: usize, output: usize) -> Option<usize> {
        let Walk { graph, tensors, .. } = *self.walk;
        let inputs = &graph.nodes()[node].inputs;
        in_place_operand(graph, crate::ValueId::new(output))
            .into_iter()
            .map(|operand| tensors.root[inputs[operand].index()])
            .find(|&tensor| {
                let is_mine = self.resident[tensor] && self.locks[tensor] == 1;
                is_mine && tensors.bytes[tensor] > 0 && self.next_use(tensor).is_none()
            })
    }

    fn next_use(&self, tensor: usize) -> Option<usize> {
        let uses = &self.walk.tensors.uses[tensor];
        uses.get(uses.partition_point(|&at| at < self.now)).copied()
    }

    /// When a tensor is needed again: by a node of the old order, or to make one that was
    /// forgotten.
    fn needed(&self, tensor: usize) -> Option<usize> {
        let forgotten =
            |&&other: &&usize| !self.resident[other] && self.walk.producer(other) < self.now;
        let dependents = self.walk.dependents[tensor].iter().filter(forgotten);
        dependents.filter_map(|&other| self.next_use(other)).chain(self.next_use(tensor)).min()
    }

    fn drop_unless_needed(&mut self, tensor: usize) {
        let bytes = self.walk.tensors.bytes[tensor];
        let held = self.locks[tensor] > 0 || !self.resident[tensor] || bytes == 0;
        if !held && self.needed(tensor).is_none() {
            self.resident[tensor] = false;
            self.used -= bytes;
        }
    }

    /// Forgets tensors until `bytes` more fit.
    fn make_room(&mut self, bytes: usize) -> Option<()> {
        while self.used + bytes > self.limits.bytes {
            let end = self.walk.graph.nodes().len();
            let mut best: Option<(f64, usize)> = None;
            for tensor in 0..self.resident.len() {
                let size = self.walk.tensors.bytes[tensor];
                if size == 0 || !self.resident[tensor] || self.locks[tensor] > 0 {
                    continue;
                }
                // What is written to a slot stays.
                if self.walk.tensors.uses[tensor].last() == Some(&end) {
                    continue;
                }
                let distance = self.needed(tensor).map_or(end, |at| at - self.now + 1);
                let Weights { size: of_size, distance: of_distance } = self.limits.weights;
                let gain = (size as f64).powf(of_size) * (distance as f64).powf(of_distance);
                let score = self.cost(tensor) / gain;
                if best.is_none_or(|(least, _)| score < least) {
                    best = Some((score, tensor));
                }
            }
            let (_, tensor) = best?;
            self.resident[tensor] = false;
            self.used -= self.walk.tensors.bytes[tensor];
        }
        Some(())
    }

    /// Seconds to make a tensor again, with everything forgotten that it is made from.
    fn cost(&mut self, tensor: usize) -> f64 {
        self.visit += 1;
        let mut seconds = 0.0;
        let mut open = vec![tensor];
        while let Some(tensor) = open.pop() {
            if std::mem::replace(&mut self.visited[tensor], self.visit) == self.visit {
                continue;
            }
            let node = self.walk.producer(tensor);
            seconds += self.walk.seconds[node];
            let operands = self.walk.tensors.operands[node].iter();
            open.extend(operands.copied().filter(|&operand| !self.resident[operand]));
        }
        seconds
    }
}
