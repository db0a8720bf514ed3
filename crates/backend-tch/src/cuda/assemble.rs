//! From fused tasks to instructions: kernels with their arguments, and calls of libraries.

use std::collections::HashMap;

use onesigma_graph::DType;

use super::fuse::Task;
use super::ir::{AttentionSpec, Entry, Home, Node, Operand, TensorId};
use super::source::group::{Access, Arg, Compute, Group, Load, Rounded, Step, Store};
use super::source::matmul::Product;
use super::source::rows::{RowGroup, RowOp};
use super::source::{Kernel, cross_entropy, flat, matmul, movement, reduce, rows, scatter, tile};

/// What a kernel is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Param {
    Tensor(TensorId),
    /// The slot that seeds random numbers.
    Seed,
    /// The slot that counts steps.
    Step,
}

/// What an instruction does.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    Kernel {
        kernel: Kernel,
        params: Vec<Param>,
    },
    /// A product on the tensor cores.
    Product {
        product: Product,
        left: TensorId,
        right: TensorId,
        out: TensorId,
        /// Of the product's epilogue.
        more: Option<TensorId>,
    },
    Attention {
        spec: AttentionSpec,
        inputs: [TensorId; 3],
        out: TensorId,
        lse: TensorId,
    },
    AttentionGrad {
        spec: AttentionSpec,
        inputs: [TensorId; 6],
        outs: [TensorId; 3],
    },
    /// A copy of a whole tensor.
    Copy {
        from: TensorId,
        to: TensorId,
    },
}

/// One launch.
#[derive(Clone, Debug)]
pub(crate) struct Instruction {
    pub work: Work,
    pub reads: Vec<TensorId>,
    pub makes: Vec<TensorId>,
    /// Operands and results that may share memory: each element is read by the thread that
    /// writes it.
    pub in_place: Vec<(TensorId, TensorId)>,
    /// Name of the node, for messages and profiles.
    pub label: String,
}

/// The instructions of an entry; adds its work spaces to the tensors.
pub(crate) fn assemble(entry: &mut Entry, tasks: &[Task]) -> Vec<Instruction> {
    let wanted = wanted(entry, tasks);
    let mut assembly = Assembly { entry, wanted, instructions: Vec::new() };
    for task in tasks {
        match task {
            Task::Group { elements, row, transposes } => {
                assembly.group(elements, *row, transposes);
            }
            Task::Single(node) => assembly.single(*node),
        }
    }
    assembly.instructions
}

/// Which tensors have to be in memory: those that slots take or another task reads.
fn wanted(entry: &Entry, tasks: &[Task]) -> Vec<bool> {
    let mut made_by = vec![usize::MAX; entry.tensors.len()];
    let members = |task: &Task| -> Vec<usize> {
        match task {
            Task::Group { elements, row, transposes } => {
                elements.iter().chain(row).chain(transposes).copied().collect()
            }
            Task::Single(node) => vec![*node],
        }
    };
    for (at, task) in tasks.iter().enumerate() {
        for node in members(task) {
            entry.nodes[node].makes().iter().for_each(|&tensor| made_by[tensor] = at);
        }
    }
    let mut wanted = vec![false; entry.tensors.len()];
    for (at, task) in tasks.iter().enumerate() {
        for node in members(task) {
            for tensor in entry.nodes[node].reads() {
                wanted[tensor] |= made_by[tensor] != at;
            }
            // What a node on its own makes is always in memory.
            if matches!(task, Task::Single(_)) {
                entry.nodes[node].makes().iter().for_each(|&tensor| wanted[tensor] = true);
            }
        }
    }
    for &(_, tensor) in &entry.writes {
        wanted[tensor] = true;
    }
    wanted
}

struct Assembly<'a> {
    entry: &'a mut Entry,
    wanted: Vec<bool>,
    instructions: Vec<Instruction>,
}

/// A group under construction, with the tensors behind its loads and results.
#[derive(Default)]
struct Builder {
    group: Group,
    loads: Vec<TensorId>,
    /// Where a tensor that the group makes stands.
    made: HashMap<TensorId, Arg>,
}

impl Builder {
    fn load(&mut self, entry: &Entry, operand: &Operand) -> Arg {
        if let Some(&arg) = self.made.get(&operand.tensor) {
            return arg;
        }
        let access = match operand.access {
            Access::Rows { width, rows, ids } => {
                let ids = Operand { tensor: ids, access: Access::Full, exact: false };
                let Arg::Load(ids) = self.load(entry, &ids) else { return Arg::Row };
                Access::Rows { width, rows, ids }
            }
            ref access => access.clone(),
        };
        let dtype = entry.tensors[operand.tensor].dtype;
        let load = Load { dtype, access, exact: operand.exact };
        let known =
            self.loads.iter().zip(&self.group.loads).position(|(tensor, other)| {
                *tensor == operand.tensor && other.access == load.access
            });
        let at = known.unwrap_or_else(|| {
            self.loads.push(operand.tensor);
            self.group.loads.push(load.clone());
            self.loads.len() - 1
        });
        self.group.loads[at].exact |= load.exact;
        Arg::Load(at)
    }
}

impl Assembly<'_> {
    fn push(
        &mut self,
        kernel: Kernel,
        inputs: Vec<TensorId>,
        outputs: Vec<TensorId>,
        in_place: Vec<(TensorId, TensorId)>,
    ) {
        let label = kernel.label.clone();
        let mut params: Vec<Param> =
            inputs.iter().chain(&outputs).map(|&tensor| Param::Tensor(tensor)).collect();
        if kernel.params > params.len() {
            params.extend([Param::Seed, Param::Step]);
        }
        let (reads, makes) = (inputs, outputs);
        let work = Work::Kernel { kernel, params };
        self.instructions.push(Instruction { work, reads, makes, in_place, label });
    }

    fn group(&mut self, elements: &[usize], row: Option<usize>, transposes: &[usize]) {
        let mut builder = Builder::default();
        let mut names: Vec<&str> = Vec::new();
        let first = elements.iter().filter(|&&node| row.is_some_and(|row| node < row)).count();
        let mut row_op = None;
        let mut results: Vec<TensorId> = Vec::new();
        let mut statistics: Vec<TensorId> = Vec::new();
        let order = elements[..first].iter().chain(row.iter()).chain(&elements[first..]);
        for &node in order {
            names.push(&self.entry.names[node]);
            match self.entry.nodes[node].clone() {
                Node::Element { compute, operands, dims, result, out } => {
                    let args =
                        operands.iter().map(|operand| builder.load(self.entry, operand)).collect();
                    builder.group.steps.push(Step { compute, args, dims, result });
                    builder.made.insert(out, Arg::Step(builder.group.steps.len() - 1));
                    results.push(out);
                }
                Node::Row { kind, operands, rows, width, result, out, statistics: own } => {
                    let args =
                        operands.iter().map(|operand| builder.load(self.entry, operand)).collect();
                    let has_statistics = !own.is_empty();
                    row_op =
                        Some(RowOp { kind, args, rows, width, result, statistics: has_statistics });
                    builder.made.insert(out, Arg::Row);
                    results.push(out);
                    statistics = own;
                }
                _ => {}
            }
        }
        // A group of copies alone reads what it copies.
        let mut turned = Vec::new();
        let mut extent = None;
        for &node in transposes {
            let Node::Transpose { from, out, rows, columns } = self.entry.nodes[node] else {
                continue;
            };
            if elements.is_empty() {
                names.push(&self.entry.names[node]);
            }
            let operand = Operand { tensor: from, access: Access::Full, exact: false };
            let what = match builder.load(self.entry, &operand) {
                Arg::Load(at) => {
                    let dtype = self.entry.tensors[from].dtype;
                    let how = onesigma_format::Conversion::SATURATE;
                    let result = Rounded { alpha: 1.0, dtype, how, stream: 0 };
                    let args = vec![Arg::Load(at)];
                    let dims = vec![rows, columns];
                    builder.group.steps.push(Step { compute: Compute::Code, args, dims, result });
                    Arg::Step(builder.group.steps.len() - 1)
                }
                arg => arg,
            };
            turned.push((Store { what, dtype: self.entry.tensors[from].dtype }, out));
            extent = Some((rows, columns));
        }
        let stored: Vec<TensorId> =
            results.into_iter().filter(|&tensor| self.wanted[tensor]).collect();
        for &tensor in &stored {
            let (what, dtype) = (builder.made[&tensor], self.entry.tensors[tensor].dtype);
            builder.group.stores.push(Store { what, dtype });
        }
        let Builder { mut group, loads, .. } = builder;
        group.numel = match (&row_op, extent) {
            (Some(op), _) => op.rows * op.width,
            (_, Some((rows, columns))) => rows * columns,
            _ => elements
                .first()
                .map_or(0, |&node| self.entry.tensors[self.entry.nodes[node].makes()[0]].numel),
        };
        if group.numel == 0 {
            return;
        }
        // Elements that a thread alone reads and writes may be replaced.
        let in_place: Vec<(TensorId, TensorId)> = match &row_op {
            Some(_) => Vec::new(),
            None => {
                let replaced = loads.iter().zip(&group.loads).filter(|(tensor, load)| {
                    load.access == Access::Full
                        && loads.iter().filter(|other| other == tensor).count() == 1
                });
                let pairs = replaced.flat_map(|(&from, load)| {
                    let same = |to: &&TensorId| {
                        self.entry.tensors[**to].dtype.bytes() == load.dtype.bytes()
                    };
                    stored.iter().filter(same).map(move |&to| (from, to)).collect::<Vec<_>>()
                });
                pairs.collect()
            }
        };
        let label = label(&names);
        let mut outputs = stored;
        let kernel = match (row_op, extent) {
            (Some(op), _) => {
                outputs.extend(statistics);
                rows::kernel(&RowGroup { group, first, op }, &label)
            }
            (None, Some((rows, columns))) => {
                let (stores, copies): (Vec<Store>, Vec<TensorId>) = turned.into_iter().unzip();
                outputs.extend(copies);
                tile::kernel(&group, &stores, rows, columns, &label)
            }
            (None, None) => flat::kernel(&group, &label),
        };
        self.push(kernel, loads, outputs, in_place);
    }

    fn single(&mut self, at: usize) {
        let name = self.entry.names[at].clone();
        let node = self.entry.nodes[at].clone();
        if node.makes().iter().all(|&tensor| self.entry.tensors[tensor].numel == 0) {
            return;
        }
        match node.clone() {
            Node::Transpose { from, out, rows, columns } => {
                let kernel = movement::transpose(rows, columns, &label(&[&name]));
                self.push(kernel, vec![from], vec![out], Vec::new());
            }
            Node::Reduce { kind, expr, operands, dims, axes, result, out } => {
                let mut builder = Builder::default();
                let args = operands
                    .iter()
                    .filter_map(|operand| match builder.load(self.entry, operand) {
                        Arg::Load(at) => Some(at),
                        _ => None,
                    })
                    .collect();
                let Builder { mut group, loads, .. } = builder;
                group.numel = dims.iter().product();
                let op = reduce::Reduction { kind, expr, group, args, dims, axes, result };
                let kernels = reduce::kernels(&op, &label(&[&name]));
                let parts =
                    self.entry.tensor(kernels.count * kernels.kept, DType::F32, Home::Temporary);
                self.push(kernels.parts, loads, vec![parts], Vec::new());
                self.push(kernels.finish, vec![parts], vec![out], Vec::new());
            }
            Node::MatMul { product, left, right, out, more, tensor_cores } => {
                if tensor_cores {
                    let work = Work::Product { product, left, right, out, more };
                    let (reads, makes) = (node.reads(), node.makes());
                    let in_place = Vec::new();
                    let label = label(&[&name]);
                    self.instructions.push(Instruction { work, reads, makes, in_place, label });
                } else {
                    let kernel = matmul::kernel(&product, &label(&[&name]));
                    self.push(kernel, vec![left, right], vec![out], Vec::new());
                }
            }
            Node::Move { parts, out } => {
                let bytes = self.entry.tensors[out].dtype.bytes();
                for (from, copy) in parts {
                    if self.entry.tensors[from].numel > 0 {
                        let kernel = movement::copy(&copy, bytes, &label(&[&name]));
                        self.push(kernel, vec![from], vec![out], Vec::new());
                    }
                }
            }
            Node::Scatter { op, updates, ids, out } => {
                let [sorted, positions, starts] = op
                    .workspaces()
                    .map(|words| self.entry.tensor(words, DType::U32, Home::Temporary));
                let name = label(&[&name]);
                let order = scatter::order(&op, &name);
                self.push(order, vec![ids], vec![sorted, positions], Vec::new());
                self.push(scatter::starts(&op, &name), vec![sorted], vec![starts], Vec::new());
                let reads = vec![updates, starts, positions];
                self.push(scatter::sum(&op, &name), reads, vec![out], Vec::new());
            }
            Node::CrossEntropy { op, logits, targets, upstream, losses, gradient } => {
                let kernel = cross_entropy::kernel(&op, &label(&[&name]));
                let inputs: Vec<TensorId> =
                    [Some(logits), Some(targets), upstream].into_iter().flatten().collect();
                let outputs = losses.into_iter().chain(gradient).collect();
                let same = |to: TensorId| {
                    let bytes = |tensor: TensorId| self.entry.tensors[tensor].dtype.bytes();
                    bytes(to) == bytes(logits)
                };
                let in_place = gradient.filter(|&to| same(to)).map(|to| (logits, to));
                self.push(kernel, inputs, outputs, in_place.into_iter().collect());
            }
            Node::Attention { spec, inputs, out, lse } => {
                let (reads, makes) = (inputs.to_vec(), vec![out, lse]);
                let work = Work::Attention { spec, inputs, out, lse };
                let (in_place, label) = (Vec::new(), label(&[&name]));
                self.instructions.push(Instruction { work, reads, makes, in_place, label });
            }
            Node::AttentionGrad { spec, inputs, outs } => {
                let (reads, makes) = (inputs.to_vec(), outs.to_vec());
                let work = Work::AttentionGrad { spec, inputs, outs };
                let (in_place, label) = (Vec::new(), label(&[&name]));
                self.instructions.push(Instruction { work, reads, makes, in_place, label });
            }
            Node::Element { .. } | Node::Row { .. } => {}
        }
    }
}

/// Names of what runs together.
fn label(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first, .., last] => format!("{first} .. {last} ({})", names.len()),
    }
}
