//! Which nodes run in one kernel.
//!
//! Element-wise ops join the kernel that makes their operands if everything else they read is
//! there by then; those that share an operand are run side by side; an op over rows takes in what
//! makes its operands and what follows from its result.

use super::ir::{Entry, Node, TensorId};
use super::source::group::Access;
use super::source::tile;

/// Operands that a kernel takes at most.
const MOST_OPERANDS: usize = 16;
/// How far back a kernel is looked for that shares an operand.
const NEAR: usize = 6;

/// Nodes that run together.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Task {
    /// Element-wise nodes, one op over rows, and transposed copies of results.
    Group { elements: Vec<usize>, row: Option<usize>, transposes: Vec<usize> },
    /// A node on its own.
    Single(usize),
}

/// Groups the nodes of an entry, in an order in which they can run.
pub(crate) fn fuse(entry: &Entry) -> Vec<Task> {
    let mut fusion = Fusion {
        entry,
        tasks: Vec::new(),
        made_by: vec![None; entry.tensors.len()],
        last_reader: vec![None; entry.tensors.len()],
    };
    for (at, node) in entry.nodes.iter().enumerate() {
        match node {
            Node::Element { .. } => fusion.element(at),
            Node::Row { .. } => fusion.row(at),
            Node::Transpose { .. } => fusion.transpose(at),
            _ => {
                fusion.tasks.push(Some(Task::Single(at)));
                fusion.settle(at, fusion.tasks.len() - 1);
            }
        }
    }
    fusion.tasks.into_iter().flatten().collect()
}

struct Fusion<'a> {
    entry: &'a Entry,
    /// `None` where a task was moved behind others.
    tasks: Vec<Option<Task>>,
    made_by: Vec<Option<usize>>,
    last_reader: Vec<Option<usize>>,
}

impl Fusion<'_> {
    /// Notes that `node` runs in `task`.
    fn settle(&mut self, node: usize, task: usize) {
        for tensor in self.entry.nodes[node].reads() {
            self.last_reader[tensor] = self.last_reader[tensor].max(Some(task));
        }
        for tensor in self.entry.nodes[node].makes() {
            self.made_by[tensor] = Some(task);
        }
    }

    fn numel(&self, node: usize) -> usize {
        self.entry.tensors[self.entry.nodes[node].makes()[0]].numel
    }

    /// The nodes of a group.
    fn members(&self, task: usize) -> Option<Vec<usize>> {
        match self.tasks[task].as_ref()? {
            Task::Group { elements, row, transposes } => {
                Some(elements.iter().chain(row).chain(transposes).copied().collect())
            }
            Task::Single(_) => None,
        }
    }

    fn inputs_of(&self, task: usize) -> Vec<TensorId> {
        let mut tensors: Vec<TensorId> = self
            .members(task)
            .unwrap_or_default()
            .iter()
            .flat_map(|&node| self.entry.nodes[node].reads())
            .filter(|&tensor| self.made_by[tensor] != Some(task))
            .collect();
        tensors.sort_unstable();
        tensors.dedup();
        tensors
    }

    /// Whether an element-wise node can run in a group: the same elements, what it reads of the
    /// group it reads element by element, and the rest is there before.
    fn can_join(&self, node: usize, task: usize) -> bool {
        let Some(Task::Group { elements, row, transposes }) = &self.tasks[task] else {
            return false;
        };
        let first = elements.first().or(row.as_ref()).or(transposes.first());
        if first.is_none_or(|&first| self.numel(first) != self.numel(node)) {
            return false;
        }
        let Node::Element { operands, .. } = &self.entry.nodes[node] else { return false };
        let mut inputs = self.inputs_of(task);
        for operand in operands {
            let made = self.made_by[operand.tensor];
            if made == Some(task) && operand.access != Access::Full {
                return false;
            }
            if let Access::Rows { ids, .. } = operand.access
                && self.made_by[ids].is_some_and(|made| made >= task)
            {
                return false;
            }
            if made > Some(task) {
                return false;
            }
            if made != Some(task) && !inputs.contains(&operand.tensor) {
                inputs.push(operand.tensor);
            }
            // Statistics of rows are no elements.
            if made == Some(task) && self.entry.tensors[operand.tensor].numel != self.numel(node) {
                return false;
            }
        }
        inputs.len() <= MOST_OPERANDS
    }

    fn element(&mut self, at: usize) {
        let reads = self.entry.nodes[at].reads();
        let latest = reads.iter().filter_map(|&tensor| self.made_by[tensor]).max();
        let mut home = latest.filter(|&task| self.can_join(at, task));
        if home.is_none() {
            let from = latest.map_or(0, |task| task + 1);
            let near = self.tasks.len().saturating_sub(NEAR).max(from);
            let shares = |task: &usize| {
                let known = self.inputs_of(*task);
                let Node::Element { operands, .. } = &self.entry.nodes[at] else { return false };
                operands.iter().any(|operand| {
                    operand.access == Access::Full && known.contains(&operand.tensor)
                })
            };
            home = (near..self.tasks.len())
                .rev()
                .find(|task| self.can_join(at, *task) && shares(task));
        }
        let task = home.unwrap_or_else(|| {
            let (elements, transposes) = (Vec::new(), Vec::new());
            self.tasks.push(Some(Task::Group { elements, row: None, transposes }));
            self.tasks.len() - 1
        });
        if let Some(Task::Group { elements, .. }) = &mut self.tasks[task] {
            elements.push(at);
        }
        self.settle(at, task);
    }

    /// Whether a group can run later: no one behind it has read what it makes.
    fn is_movable(&self, task: usize) -> bool {
        self.members(task).is_some_and(|members| {
            members
                .iter()
                .flat_map(|&node| self.entry.nodes[node].makes())
                .all(|tensor| self.last_reader[tensor].is_none_or(|reader| reader <= task))
        })
    }

    fn row(&mut self, at: usize) {
        let Node::Row { operands, rows, width, .. } = &self.entry.nodes[at] else { return };
        let numel = rows * width;
        let mut before: Vec<usize> = Vec::new();
        for operand in operands.iter().filter(|operand| operand.access == Access::Full) {
            let Some(task) = self.made_by[operand.tensor] else { continue };
            if before.contains(&task) || !self.is_movable(task) {
                continue;
            }
            if let Some(Task::Group { elements, row: None, transposes }) = &self.tasks[task]
                && transposes.is_empty()
                && elements.iter().all(|&node| self.numel(node) == numel)
                && self.inputs_of(task).len() + operands.len() <= MOST_OPERANDS / 2
            {
                before.push(task);
            }
        }
        before.sort_unstable();
        let mut elements = Vec::new();
        for &task in &before {
            if let Some(Task::Group { elements: own, .. }) = self.tasks[task].take() {
                elements.extend(own);
            }
        }
        let task = self.tasks.len();
        let group =
            Task::Group { elements: elements.clone(), row: Some(at), transposes: Vec::new() };
        self.tasks.push(Some(group));
        for node in elements {
            self.settle(node, task);
        }
        self.settle(at, task);
    }

    fn transpose(&mut self, at: usize) {
        let Node::Transpose { from, rows, columns, .. } = self.entry.nodes[at] else { return };
        if tile::fits(rows, columns)
            && let Some(task) = self.made_by[from]
            && let Some(Task::Group { row: None, transposes, .. }) = &self.tasks[task]
            && transposes.iter().all(|&other| {
                matches!(self.entry.nodes[other], Node::Transpose { rows: r, columns: c, .. } if (r, c) == (rows, columns))
            })
        {
            if let Some(Task::Group { transposes, .. }) = &mut self.tasks[task] {
                transposes.push(at);
            }
            self.settle(at, task);
            return;
        }
        if tile::fits(rows, columns) {
            let group = Task::Group { elements: Vec::new(), row: None, transposes: vec![at] };
            self.tasks.push(Some(group));
        } else {
            self.tasks.push(Some(Task::Single(at)));
        }
        self.settle(at, self.tasks.len() - 1);
    }
}
