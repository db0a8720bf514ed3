//! From the graph of an entry to work over tensors, in groups that run in one kernel.

use onesigma_graph::expr::Expr;
use onesigma_graph::passes::clean::clean;
use onesigma_graph::{DType, Graph, Node, Op, Program, ReduceKind, Shape, ValueId, decompose};

use crate::fuse::Fusion;
use crate::ir::{
    Access, Attention, AttentionKind, Compute, Element, Entry, Home, Operand, Product, Reduction,
    Rounded, RowKind, Rows, Scatter, TensorId, Work,
};
use crate::memory::filling;
use crate::shader::index::View;
use crate::shader::{attention, reduce, rows};

/// Lowers a graph; `bindings` is the most that a kernel may have, `shared_bytes` the memory that a
/// workgroup shares.
///
/// # Errors
/// Those of [`decompose`].
pub(crate) fn lower(
    graph: &Graph,
    program: &Program,
    bindings: usize,
    shared_bytes: usize,
) -> onesigma_graph::Result<Entry> {
    let parts = decompose(graph, |node| !is_native(graph, node, bindings, shared_bytes))?;
    let graph = clean(&parts);
    let mut lowering = Lowering {
        graph: &graph,
        fusion: Fusion::new(bindings),
        of: vec![usize::MAX; graph.values().len()],
        bindings,
    };
    if graph.nodes().iter().any(|node| onesigma_backend::draws(&graph, node)) {
        lowering.fusion.entry.seed =
            program.seed().map(|slot| lowering.slot_tensor(slot.index(), 2));
        lowering.fusion.entry.step =
            program.step().map(|slot| lowering.slot_tensor(slot.index(), 1));
    }
    for node in graph.nodes() {
        lowering.node(node);
    }
    let writes = graph.writes().iter();
    let writes: Vec<(usize, TensorId)> =
        writes.map(|&(slot, value)| (slot.index(), lowering.of[value.index()])).collect();
    let mut entry = lowering.fusion.finish();
    entry.writes = writes;
    Ok(entry)
}

/// Whether a fused op has a kernel; the others run as their decomposition, of which fusion makes
/// few kernels again.
fn is_native(graph: &Graph, node: &Node, bindings: usize, shared_bytes: usize) -> bool {
    match node.op {
        Op::Attention { .. } | Op::AttentionGrad { .. } => {
            let operands = |at: usize| graph.value(node.inputs[at]);
            let is_forward = matches!(node.op, Op::Attention { .. });
            // Operands and results of the kernel with the most of them, seed and step.
            let (statistic, needed) = match is_forward {
                true => (graph.value(node.outputs[1]), node.inputs.len() + 4),
                false => (operands(4), node.inputs.len() + 4),
            };
            needed <= bindings
                && statistic.dtype == DType::F32
                && node.inputs.iter().all(|&input| graph.shape(input).numel() > 0)
                && attention::fits(operands(0).shape.last(), shared_bytes)
        }
        Op::Softmax { .. }
        | Op::SoftmaxGrad { .. }
        | Op::LayerNorm { .. }
        | Op::LayerNormGrad { .. }
        | Op::RmsNorm { .. }
        | Op::RmsNormGrad { .. } => rows::fits(graph.shape(node.inputs[0]).last()),
        _ => !node.op.is_fused(),
    }
}

struct Lowering<'a> {
    graph: &'a Graph,
    fusion: Fusion,
    /// Tensor of each value.
    of: Vec<TensorId>,
    bindings: usize,
}

impl Lowering<'_> {
    fn slot_tensor(&mut self, slot: usize, numel: usize) -> TensorId {
        self.fusion.entry.tensor(numel, DType::U32, Home::Slot(slot))
    }

    fn shape(&self, value: ValueId) -> &Shape {
        self.graph.shape(value)
    }

    fn tensor_of(&self, value: ValueId) -> TensorId {
        self.of[value.index()]
    }

    fn temporary(&mut self, numel: usize, dtype: DType) -> TensorId {
        self.fusion.entry.tensor(numel, dtype, Home::Temporary)
    }

    /// The tensor of a result.
    fn result(&mut self, value: ValueId) -> TensorId {
        let (numel, dtype) = (self.shape(value).numel(), self.graph.value(value).dtype);
        let tensor = self.temporary(numel, dtype);
        self.of[value.index()] = tensor;
        tensor
    }

    fn rounded(&self, node: &Node, output: usize) -> Rounded {
        let value = self.graph.value(node.outputs[output]);
        Rounded {
            alpha: node.alpha[output],
            dtype: value.dtype,
            how: value.conversion,
            stream: node.stream.wrapping_add((output as u32) << 24),
        }
    }

    fn push(&mut self, node: &Node, work: Work) {
        let empty = |tensor: &TensorId| self.fusion.entry.tensors[*tensor].numel == 0;
        if !work.makes().iter().all(empty) {
            self.fusion.push(work, &node.name);
        }
    }

    fn push_element(&mut self, node: &Node, element: Element) {
        let element = self.bounded(node, element);
        self.push(node, Work::Group(vec![element]));
    }

    /// The element with scalar operands packed into one tensor, where it has more operands than a
    /// kernel has bindings.
    fn bounded(&mut self, node: &Node, mut element: Element) -> Element {
        let mut tensors: Vec<TensorId> =
            element.operands.iter().map(|operand| operand.tensor).collect();
        tensors.sort_unstable();
        tensors.dedup();
        let random = if element.draws() { 2 } else { 0 };
        if tensors.len() + 1 + random <= self.bindings {
            return element;
        }
        let is_scalar = |tensor: &TensorId| self.fusion.entry.tensors[*tensor].numel == 1;
        let scalars: Vec<TensorId> = tensors.into_iter().filter(is_scalar).collect();
        let packed = self.temporary(scalars.len(), DType::F32);
        let mut parts: Vec<TensorId> = Vec::new();
        for &scalar in &scalars {
            let part = self.temporary(1, DType::F32);
            let identity = Element {
                compute: Compute::Expr(Expr::identity()),
                operands: vec![Operand::full(scalar, 1)],
                dims: vec![1],
                result: Rounded::PLAIN,
                out: part,
            };
            self.push(node, Work::Group(vec![identity]));
            parts.push(part);
        }
        self.concat(node, &parts, 1, &vec![1; scalars.len()], packed, Rounded::PLAIN);
        for operand in &mut element.operands {
            if let Some(at) = scalars.iter().position(|&scalar| scalar == operand.tensor) {
                operand.tensor = packed;
                operand.access = Access::View(View { axes: vec![(2, 0)], offset: at });
            }
        }
        element
    }

    fn node(&mut self, node: &Node) {
        match &node.op {
            Op::Slot(slot) => {
                let (value, slot) = (node.outputs[0], slot.index());
                let (numel, dtype) = (self.shape(value).numel(), self.graph.value(value).dtype);
                self.of[value.index()] = self.fusion.entry.tensor(numel, dtype, Home::Slot(slot));
            }
            Op::Reshape { .. } => {
                self.of[node.outputs[0].index()] = self.tensor_of(node.inputs[0]);
            }
            Op::Map { expr, shape } => self.map(node, expr, shape),
            Op::Cast { .. } => {
                let operand = self.full(node.inputs[0]);
                self.element(node, Compute::Expr(Expr::identity()), vec![operand]);
            }
            Op::Random { distribution, .. } => {
                self.element(node, Compute::Random(*distribution), Vec::new());
            }
            Op::Gather => self.gather(node),
            Op::Permute { .. } | Op::Slice { .. } => self.strided(node),
            Op::Concat { axis } => self.concat_node(node, *axis),
            Op::Reduce { kind, expr, shape, axes, .. } => {
                self.reduce(node, *kind, expr, shape, axes);
            }
            Op::MatMul { transpose_left, transpose_right } => {
                self.product(node, *transpose_left, *transpose_right);
            }
            Op::ScatterAdd { rows } => self.scatter(node, *rows),
            Op::Softmax { mult } => self.rows(node, RowKind::Softmax { mult: *mult }),
            Op::SoftmaxGrad { mult, forward_alpha } => {
                let (mult, forward_alpha) = (*mult, *forward_alpha);
                self.rows(node, RowKind::SoftmaxGrad { mult, forward_alpha });
            }
            Op::LayerNorm { eps } => self.rows(node, RowKind::Norm { eps: *eps, centred: true }),
            Op::RmsNorm { eps } => self.rows(node, RowKind::Norm { eps: *eps, centred: false }),
            Op::Attention { causal, logit_scale } => self.attention(node, *causal, *logit_scale),
            Op::AttentionGrad { causal, logit_scale, forward_alpha } => {
                self.attention_grad(node, *causal, *logit_scale, *forward_alpha);
            }
            Op::LayerNormGrad { eps } => self.norm_grad(node, *eps, true),
            Op::RmsNormGrad { eps } => self.norm_grad(node, *eps, false),
            // `supports` denies what is not here.
            _ => {}
        }
    }

    fn full(&self, value: ValueId) -> Operand {
        Operand::full(self.tensor_of(value), self.shape(value).numel())
    }

    fn element(&mut self, node: &Node, compute: Compute, operands: Vec<Operand>) {
        let value = node.outputs[0];
        let dims = self.shape(value).dims().to_vec();
        let (result, out) = (self.rounded(node, 0), self.result(value));
        self.push_element(node, Element { compute, operands, dims, result, out });
    }

    fn broadcast(&self, inputs: &[ValueId], shape: &Shape) -> Vec<Operand> {
        inputs
            .iter()
            .map(|&input| {
                let strides = self.shape(input).broadcast_strides(shape);
                let view = View::new(shape.dims(), &strides, 0);
                Operand { tensor: self.tensor_of(input), access: Access::View(view) }
            })
            .collect()
    }

    fn map(&mut self, node: &Node, expr: &Expr, shape: &Shape) {
        let operands = self.broadcast(&node.inputs, shape);
        self.element(node, Compute::Expr(expr.clone()), operands);
    }

    fn gather(&mut self, node: &Node) {
        let (table, ids) = (node.inputs[0], node.inputs[1]);
        let dims = self.shape(table).dims();
        let access = Access::Rows { width: dims[1], rows: dims[0], ids: self.tensor_of(ids) };
        let operand = Operand { tensor: self.tensor_of(table), access };
        self.element(node, Compute::Expr(Expr::identity()), vec![operand]);
    }

    /// Permute and slice: views of their operand.
    fn strided(&mut self, node: &Node) {
        let from = node.inputs[0];
        let strides = self.shape(from).strides();
        let dims = self.shape(node.outputs[0]).dims().to_vec();
        let view = match &node.op {
            Op::Permute { axes } => {
                let strides: Vec<usize> = axes.iter().map(|&axis| strides[axis]).collect();
                View::new(&dims, &strides, 0)
            }
            Op::Slice { axis, start, .. } => View::new(&dims, &strides, start * strides[*axis]),
            _ => return,
        };
        let operand = Operand { tensor: self.tensor_of(from), access: Access::View(view) };
        self.element(node, Compute::Copy, vec![operand]);
    }

    fn concat_node(&mut self, node: &Node, axis: usize) {
        let parts: Vec<TensorId> = node.inputs.iter().map(|&input| self.tensor_of(input)).collect();
        let extents: Vec<usize> =
            node.inputs.iter().map(|&input| self.shape(input).dims()[axis]).collect();
        let inner = self.shape(node.outputs[0]).dims()[axis + 1..].iter().product();
        let (result, out) = (self.rounded(node, 0), self.result(node.outputs[0]));
        self.concat(node, &parts, inner, &extents, out, result);
    }

    /// Parts one after another; many of them in several steps, as a kernel has few bindings.
    fn concat(
        &mut self,
        node: &Node,
        parts: &[TensorId],
        inner: usize,
        extents: &[usize],
        out: TensorId,
        result: Rounded,
    ) {
        let most = self.bindings - 1;
        let total = self.fusion.entry.tensors[out].numel;
        let outer = total / (inner * extents.iter().sum::<usize>()).max(1);
        let (mut parts, mut extents) = (parts.to_vec(), extents.to_vec());
        while parts.len() > most {
            let extent: usize = extents[..most].iter().sum();
            let joined = self.temporary(outer * inner * extent, result.dtype);
            let first: Vec<TensorId> = parts.drain(..most).collect();
            let own: Vec<usize> = extents.drain(..most).collect();
            self.concat_few(node, &first, inner, &own, joined, result);
            parts.insert(0, joined);
            extents.insert(0, extent);
        }
        self.concat_few(node, &parts, inner, &extents, out, result);
    }

    fn concat_few(
        &mut self,
        node: &Node,
        parts: &[TensorId],
        inner: usize,
        extents: &[usize],
        out: TensorId,
        result: Rounded,
    ) {
        let filled = parts.iter().zip(extents).filter(|(_, extent)| **extent > 0);
        let (parts, extents): (Vec<TensorId>, Vec<usize>) = filled.unzip();
        let mut end = 0;
        let ends = extents.iter().map(|extent| {
            end += extent;
            end
        });
        let compute = Compute::Concat { inner, ends: ends.collect() };
        // Read past the group's registers.
        let elsewhere = |tensor: TensorId| Operand {
            tensor,
            access: Access::View(View { axes: vec![(2, 0)], offset: 0 }),
        };
        let operands = parts.into_iter().map(elsewhere).collect();
        let dims = vec![self.fusion.entry.tensors[out].numel];
        let result = Rounded { alpha: 1.0, ..result };
        self.push(node, Work::Group(vec![Element { compute, operands, dims, result, out }]));
    }

    fn reduce(
        &mut self,
        node: &Node,
        kind: ReduceKind,
        expr: &Expr,
        shape: &Shape,
        axes: &[usize],
    ) {
        if axes.iter().all(|&axis| shape.dims()[axis] == 1) {
            let operands = self.broadcast(&node.inputs, shape);
            let (result, out) = (self.rounded(node, 0), self.result(node.outputs[0]));
            let (compute, dims) = (Compute::Expr(expr.clone()), shape.dims().to_vec());
            self.push_element(node, Element { compute, operands, dims, result, out });
            return;
        }
        let strides = |input: &ValueId| self.shape(*input).broadcast_strides(shape);
        let operands =
            node.inputs.iter().map(|input| (self.tensor_of(*input), strides(input))).collect();
        let dims = shape.dims().to_vec();
        let (result, out) = (self.rounded(node, 0), self.result(node.outputs[0]));
        let axes = axes.to_vec();
        let op = Reduction { kind, expr: expr.clone(), operands, dims, axes, alpha: 1.0, out };
        self.reduction(node, op, result);
    }

    /// A reduction whose result is scaled and rounded.
    fn reduction(&mut self, node: &Node, op: Reduction, result: Rounded) {
        let numel = self.fusion.entry.tensors[op.out].numel;
        if numel == 0 {
            return;
        }
        let (_, count, _) = reduce::sizes(&op);
        if count == 0 {
            let value = if op.kind == ReduceKind::Sum { 0.0 } else { f64::NEG_INFINITY };
            self.push(node, Work::Group(vec![filling(value, numel, result, op.out)]));
            return;
        }
        if result.is_f32() {
            self.parted(node, Reduction { alpha: result.alpha, ..op });
            return;
        }
        let sum = self.temporary(numel, DType::F32);
        let out = op.out;
        self.parted(node, Reduction { out: sum, ..op });
        self.round_into(node, sum, result, out);
    }

    /// A reduction into F32, in two steps if it has few outputs.
    fn parted(&mut self, node: &Node, op: Reduction) {
        let parts = reduce::parts(&op);
        if parts == 1 {
            self.push(node, Work::Reduce(op, 1));
            return;
        }
        let (outputs, _, along_rows) = reduce::sizes(&op);
        let partial = self.temporary(outputs * parts, DType::F32);
        let (dims, strides, axes) = match along_rows {
            true => (vec![outputs, parts], vec![parts, 1], vec![1]),
            false => (vec![parts, outputs], vec![outputs, 1], vec![0]),
        };
        let second = Reduction {
            expr: Expr::identity(),
            operands: vec![(partial, strides)],
            dims,
            axes,
            ..op.clone()
        };
        self.push(node, Work::Reduce(Reduction { out: partial, ..op }, parts));
        self.push(node, Work::Reduce(second, 1));
    }

    /// Scales and rounds F32 numbers.
    fn round_into(&mut self, node: &Node, from: TensorId, result: Rounded, out: TensorId) {
        let numel = self.fusion.entry.tensors[from].numel;
        let element = Element {
            compute: Compute::Expr(Expr::identity()),
            operands: vec![Operand::full(from, numel)],
            dims: vec![numel],
            result,
            out,
        };
        self.push_element(node, element);
    }

    fn product(&mut self, node: &Node, transpose_left: bool, transpose_right: bool) {
        let (left, right) = (self.shape(node.inputs[0]), self.shape(node.inputs[1]));
        let (a, b) = (left.dims(), right.dims());
        let (batch_a, [x, y]) = (&a[..a.len() - 2], [a[a.len() - 2], a[a.len() - 1]]);
        let (batch_b, [z, w]) = (&b[..b.len() - 2], [b[b.len() - 2], b[b.len() - 1]]);
        let (mut m, k) = if transpose_left { (y, x) } else { (x, y) };
        let n = if transpose_right { z } else { w };
        let mut batch: usize = batch_a.iter().product();
        if batch_b.len() < batch_a.len() {
            // One matrix for all: the batch is more rows.
            m *= batch;
            batch = 1;
        }
        let [left, right] = [0, 1].map(|at| self.tensor_of(node.inputs[at]));
        let (result, out) = (self.rounded(node, 0), self.result(node.outputs[0]));
        let numel = self.fusion.entry.tensors[out].numel;
        if k == 0 || numel == 0 {
            self.push(node, Work::Group(vec![filling(0.0, numel, result, out)]));
            return;
        }
        let op =
            Product { batch, m, n, k, transpose_left, transpose_right, left, right, result, out };
        if n.is_multiple_of(4) || result.is_f32() {
            self.push(node, Work::Product(op));
            return;
        }
        let sum = self.temporary(numel, DType::F32);
        self.push(node, Work::Product(Product { result: Rounded::PLAIN, out: sum, ..op }));
        self.round_into(node, sum, result, out);
    }

    fn scatter(&mut self, node: &Node, rows: usize) {
        let count = self.shape(node.inputs[1]).numel();
        let width = self.shape(node.inputs[0]).last();
        let [updates, ids] = [0, 1].map(|at| self.tensor_of(node.inputs[at]));
        let (result, out) = (self.rounded(node, 0), self.result(node.outputs[0]));
        let numel = rows * width;
        if count == 0 || numel == 0 {
            self.push(node, Work::Group(vec![filling(0.0, numel, result, out)]));
            return;
        }
        let [sorted, order] = [0, 1].map(|_| self.temporary(count, DType::U32));
        let starts = self.temporary(rows + 1, DType::U32);
        let alpha = result.alpha;
        let mut op =
            Scatter { rows, count, width, updates, ids, sorted, order, starts, alpha, out };
        if result.is_f32() {
            self.push(node, Work::Scatter(op));
            return;
        }
        let sum = self.temporary(numel, DType::F32);
        (op.out, op.alpha) = (sum, 1.0);
        self.push(node, Work::Scatter(op));
        self.round_into(node, sum, result, out);
    }

    fn rows(&mut self, node: &Node, kind: RowKind) {
        let shape = self.shape(node.inputs[0]);
        let (rows, width) = (shape.rows(), shape.last());
        let operands = node.inputs.iter().map(|&input| self.tensor_of(input)).collect();
        let (result, out) = (self.rounded(node, 0), self.result(node.outputs[0]));
        let (out, statistics) = (Some(out), Vec::new());
        self.push(node, Work::Rows(Rows { kind, rows, width, operands, result, out, statistics }));
    }

    /// Gradients of a norm: for x by rows, for weight and bias by columns, with the statistics of
    /// the rows.
    fn norm_grad(&mut self, node: &Node, eps: f64, centred: bool) {
        let shape = self.shape(node.inputs[0]).clone();
        let (rows, width) = (shape.rows(), shape.last());
        let operands: Vec<TensorId> =
            node.inputs.iter().take(3).map(|&input| self.tensor_of(input)).collect();
        let (x, dy) = (operands[0], operands[1]);
        let (result, out) = (self.rounded(node, 0), self.result(node.outputs[0]));
        let weighted = node.outputs.len() > 1;
        let count = match (weighted, centred) {
            (false, _) => 0,
            (true, false) => 1,
            (true, true) => 2,
        };
        let statistics: Vec<TensorId> =
            (0..count).map(|_| self.temporary(rows, DType::F32)).collect();
        let kind = RowKind::NormGrad { eps, centred };
        let out = Some(out);
        let work =
            Rows { kind, rows, width, operands, result, out, statistics: statistics.clone() };
        self.push(node, Work::Rows(work));
        let full = vec![width, 1];
        let column = vec![1, 0];
        let by_columns = |expr, operands, out| Reduction {
            kind: ReduceKind::Sum,
            expr,
            operands,
            dims: vec![rows, width],
            axes: vec![0],
            alpha: 1.0,
            out,
        };
        if weighted {
            let mut operands = vec![(x, full.clone()), (dy, full.clone())];
            operands.extend(statistics.iter().map(|&tensor| (tensor, column.clone())));
            let expr = match centred {
                true => {
                    Expr::new(4, |x| x[1].clone() * ((x[0].clone() - x[2].clone()) * x[3].clone()))
                }
                false => Expr::new(3, |x| x[1].clone() * (x[0].clone() * x[2].clone())),
            };
            let (result, out) = (self.rounded(node, 1), self.result(node.outputs[1]));
            self.reduction(node, by_columns(expr, operands, out), result);
        }
        if node.outputs.len() > 2 {
            let (result, out) = (self.rounded(node, 2), self.result(node.outputs[2]));
            self.reduction(node, by_columns(Expr::identity(), vec![(dy, full)], out), result);
        }
    }

    /// Attention over the operands of a node, of which number `mask` is the mask if there is one.
    fn attention_of(
        &self,
        node: &Node,
        causal: bool,
        scale: f64,
        mask: usize,
        kind: AttentionKind,
    ) -> Work {
        let (q, k) = (self.shape(node.inputs[0]).dims(), self.shape(node.inputs[1]).dims());
        let operand = |at: usize| self.tensor_of(node.inputs[at]);
        Work::Attention(Attention {
            batch: q[0],
            queries: q[1],
            keys: k[1],
            heads: q[2],
            kv_heads: k[2],
            width: q[3],
            causal,
            scale,
            q: operand(0),
            k: operand(1),
            v: operand(2),
            mask: node.inputs.get(mask).map(|&value| self.tensor_of(value)),
            kind,
        })
    }

    fn attention(&mut self, node: &Node, causal: bool, scale: f64) {
        let out = (self.rounded(node, 0), self.result(node.outputs[0]));
        let lse = (node.alpha[1], self.result(node.outputs[1]));
        let kind = AttentionKind::Forward { out, lse };
        let work = self.attention_of(node, causal, scale, 3, kind);
        self.push(node, work);
    }

    fn attention_grad(&mut self, node: &Node, causal: bool, scale: f64, forward_alpha: f64) {
        let [output, lse, dy] = [3, 4, 5].map(|at| self.tensor_of(node.inputs[at]));
        // The share of each row that its own normalisation takes back: sum(dy y).
        let shape = self.shape(node.inputs[3]);
        let dims = vec![shape.rows(), shape.last()];
        let strides = vec![shape.last(), 1];
        let along = self.temporary(dims[0], DType::F32);
        let sum = Reduction {
            kind: ReduceKind::Sum,
            expr: Expr::new(2, |x| x[0].clone() * x[1].clone()),
            operands: vec![(dy, strides.clone()), (output, strides)],
            dims,
            axes: vec![1],
            alpha: 1.0 / forward_alpha,
            out: along,
        };
        self.parted(node, sum);
        let results: [_; 3] =
            [0, 1, 2].map(|at| (self.rounded(node, at), self.result(node.outputs[at])));
        let kind = AttentionKind::QueryGrad { dy, lse, along, out: results[0] };
        let work = self.attention_of(node, causal, scale, 6, kind);
        self.push(node, work);
        let kind = AttentionKind::KeyGrad { dy, lse, along, dk: results[1], dv: results[2] };
        let work = self.attention_of(node, causal, scale, 6, kind);
        self.push(node, work);
    }
}
