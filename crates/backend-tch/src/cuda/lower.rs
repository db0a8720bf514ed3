//! From the graph of an entry to nodes over tensors.

use std::collections::HashMap;

use onesigma_format::{Conversion, Format, Rounding};
use onesigma_graph::expr::Expr;
use onesigma_graph::passes::clean::clean;
use onesigma_graph::{DType, Graph, Node as Source, Op, ReduceKind, Shape, ValueId, decompose};

use super::ir::{AttentionSpec, Entry, Home, Node, Operand, TensorId};
use super::source::cross_entropy::{CrossEntropy, Gradient};
use super::source::group::{Access, Compute, Rounded};
use super::source::matmul::{Epilogue, Product};
use super::source::movement::Copy;
use super::source::rows::{self, RowKind};
use super::source::scatter::Scatter;

/// What the libraries of a device run.
pub(crate) trait Abilities {
    /// Whether a product runs on the tensor cores, given operands whose rows run along k if they
    /// have one byte.
    fn runs_product(&self, product: &Product) -> bool;
    /// Whether fused attention runs.
    fn runs_attention(&self, spec: &AttentionSpec) -> bool;
}

/// Whether a product's operands have one byte, so that both must run along k.
pub(crate) fn is_fp8(product: &Product) -> bool {
    let fp8 = |dtype: DType| matches!(dtype, DType::Float(format) if format == Format::E4M3 || format == Format::E5M2);
    fp8(product.left) && fp8(product.right)
}

/// Lowers a graph.
///
/// # Errors
/// Those of [`decompose`].
pub(crate) fn lower(graph: &Graph, abilities: &dyn Abilities) -> onesigma_graph::Result<Entry> {
    let parts = decompose(graph, |node| !is_native(graph, node, abilities))?;
    let graph = clean(&parts);
    let mut lowering = Lowering {
        graph: &graph,
        abilities,
        entry: Entry::default(),
        of: vec![usize::MAX; graph.values().len()],
        raw: HashMap::new(),
        transposed: Vec::new(),
        pending: losses_with_gradient(&graph),
    };
    for (at, node) in graph.nodes().iter().enumerate() {
        lowering.node(at, node);
    }
    let writes = graph.writes().iter();
    lowering.entry.writes =
        writes.map(|&(slot, value)| (slot.index(), lowering.of[value.index()])).collect();
    Ok(lowering.finish())
}

/// Whether a fused op has kernels of its own; AdamW's decomposition becomes one kernel by fusion.
fn is_native(graph: &Graph, node: &Source, abilities: &dyn Abilities) -> bool {
    match node.op {
        Op::Softmax { .. }
        | Op::SoftmaxGrad { .. }
        | Op::LayerNorm { .. }
        | Op::LayerNormGrad { .. }
        | Op::RmsNorm { .. }
        | Op::RmsNormGrad { .. } => rows::fits(graph.shape(node.inputs[0]).last()),
        Op::CrossEntropy { .. } | Op::CrossEntropyGrad { .. } => {
            graph.shape(node.inputs[0]).last() < 1 << 18
        }
        Op::Attention { causal, logit_scale } | Op::AttentionGrad { causal, logit_scale, .. } => {
            let spec = attention_spec(graph, node, causal, logit_scale);
            let same = |at: usize| graph.value(node.inputs[at]).dtype == spec.dtype;
            same(1) && same(2) && abilities.runs_attention(&spec)
        }
        Op::AdamW(_) => false,
        _ => true,
    }
}

fn attention_spec(graph: &Graph, node: &Source, causal: bool, scale: f64) -> AttentionSpec {
    let [q, k] = [0, 1].map(|at| graph.shape(node.inputs[at]).dims());
    AttentionSpec {
        batch: q[0],
        queries: q[1],
        keys: k[1],
        heads: q[2],
        key_heads: k[2],
        width: q[3],
        causal,
        scale,
        dtype: graph.value(node.inputs[0]).dtype,
    }
}

/// Cross-entropies whose loss can be worked out with their gradient: by node of the loss, that of
/// the gradient.
fn losses_with_gradient(graph: &Graph) -> HashMap<usize, usize> {
    let mut pairs = HashMap::new();
    for (at, node) in graph.nodes().iter().enumerate() {
        let Op::CrossEntropy { mult, mean } = node.op else { continue };
        let loss = node.outputs[0];
        let reader = graph.nodes().iter().position(|other| other.inputs.contains(&loss));
        let gradient = graph.nodes().iter().position(|other| {
            matches!(other.op, Op::CrossEntropyGrad { mult: m, mean: n } if m == mult && n == mean)
                && other.inputs[..2] == node.inputs[..]
        });
        if let Some(gradient) = gradient
            && gradient > at
            && reader.is_none_or(|reader| reader > gradient)
        {
            pairs.insert(at, gradient);
        }
    }
    pairs
}

struct Lowering<'a> {
    graph: &'a Graph,
    abilities: &'a dyn Abilities,
    entry: Entry,
    /// Tensor of each value.
    of: Vec<TensorId>,
    /// Unscaled output and log-sum-exp of an attention, by its scaled output.
    raw: HashMap<TensorId, (TensorId, TensorId)>,
    /// Transposed copies: of a tensor, as a matrix of rows and columns.
    transposed: Vec<(TensorId, usize, usize, TensorId)>,
    /// Losses that wait for their gradient.
    pending: HashMap<usize, usize>,
}

impl Lowering<'_> {
    fn emit(&mut self, name: &str, node: Node) {
        self.entry.nodes.push(node);
        self.entry.names.push(name.to_owned());
    }

    fn shape(&self, value: ValueId) -> &Shape {
        self.graph.shape(value)
    }

    fn tensor_of(&self, value: ValueId) -> TensorId {
        self.of[value.index()]
    }

    /// The tensor of a result.
    fn result(&mut self, value: ValueId) -> TensorId {
        let info = self.graph.value(value);
        let tensor = self.entry.tensor(info.shape.numel(), info.dtype, Home::Temporary);
        self.of[value.index()] = tensor;
        tensor
    }

    fn rounded(&self, node: &Source, output: usize) -> Rounded {
        let value = self.graph.value(node.outputs[output]);
        Rounded {
            alpha: node.alpha[output],
            dtype: value.dtype,
            how: value.conversion,
            stream: node.stream.wrapping_add((output as u32) << 24),
        }
    }

    /// An operand that is broadcast to `shape`.
    fn operand(&self, value: ValueId, shape: &Shape) -> Operand {
        let own = self.shape(value);
        let access = match own.numel() {
            numel if numel == shape.numel() => Access::Full,
            1 => Access::Scalar,
            _ => Access::strided(shape.dims(), &own.broadcast_strides(shape)),
        };
        Operand { tensor: self.tensor_of(value), access, exact: false }
    }

    fn full(tensor: TensorId) -> Operand {
        Operand { tensor, access: Access::Full, exact: false }
    }

    fn element(
        &mut self,
        name: &str,
        compute: Compute,
        operands: Vec<Operand>,
        shape: &Shape,
        result: Rounded,
        out: TensorId,
    ) {
        let dims = shape.dims().to_vec();
        self.emit(name, Node::Element { compute, operands, dims, result, out });
    }

    fn node(&mut self, at: usize, node: &Source) {
        let shape = self.shape(node.outputs[0]).clone();
        match &node.op {
            Op::Slot(slot) => {
                let dtype = self.graph.value(node.outputs[0]).dtype;
                let home = Home::Slot(slot.index());
                let tensor = self.entry.tensor(shape.numel(), dtype, home);
                self.of[node.outputs[0].index()] = tensor;
            }
            Op::Reshape { .. } => {
                self.of[node.outputs[0].index()] = self.tensor_of(node.inputs[0]);
            }
            Op::Map { expr, .. } => {
                let operands = node.inputs.iter().map(|&x| self.operand(x, &shape)).collect();
                self.map(node, expr.clone(), operands, &shape);
            }
            Op::Cast { .. } => {
                let mut operand = self.operand(node.inputs[0], &shape);
                operand.exact = true;
                self.map(node, Expr::identity(), vec![operand], &shape);
            }
            Op::Gather => {
                let table = self.shape(node.inputs[0]).dims();
                let access = Access::Rows {
                    width: table[1],
                    rows: table[0],
                    ids: self.tensor_of(node.inputs[1]),
                };
                let tensor = self.tensor_of(node.inputs[0]);
                let operand = Operand { tensor, access, exact: false };
                self.map(node, Expr::identity(), vec![operand], &shape);
            }
            Op::Random { distribution, .. } => {
                let result = self.rounded(node, 0);
                let out = self.result(node.outputs[0]);
                let compute = Compute::Random(*distribution);
                self.element(&node.name, compute, Vec::new(), &shape, result, out);
            }
            Op::Reduce { kind, expr, shape, axes, .. } => {
                let operands = node.inputs.iter().map(|&x| self.operand(x, shape)).collect();
                let result = self.rounded(node, 0);
                let out = self.result(node.outputs[0]);
                let (dims, axes) = (shape.dims().to_vec(), axes.clone());
                let reduce = Node::Reduce {
                    kind: *kind,
                    expr: expr.clone(),
                    operands,
                    dims,
                    axes,
                    result,
                    out,
                };
                self.emit(&node.name, reduce);
            }
            Op::MatMul { transpose_left, transpose_right } => {
                self.mat_mul(node, *transpose_left, *transpose_right);
            }
            Op::Permute { .. } | Op::Slice { .. } | Op::Concat { .. } => {
                self.movement(node, &shape)
            }
            Op::ScatterAdd { rows } => {
                let op = Scatter {
                    rows: *rows,
                    count: self.shape(node.inputs[1]).numel(),
                    width: shape.last(),
                    updates: self.graph.value(node.inputs[0]).dtype,
                    result: self.rounded(node, 0),
                };
                let [updates, ids] = [0, 1].map(|at| self.tensor_of(node.inputs[at]));
                let out = self.result(node.outputs[0]);
                self.emit(&node.name, Node::Scatter { op, updates, ids, out });
            }
            Op::Softmax { mult } => self.row(node, RowKind::Softmax { mult: *mult }),
            Op::SoftmaxGrad { mult, forward_alpha } => {
                let (mult, forward_alpha) = (*mult, *forward_alpha);
                self.row(node, RowKind::SoftmaxGrad { mult, forward_alpha });
            }
            Op::LayerNorm { eps } => self.row(node, RowKind::Norm { eps: *eps, centred: true }),
            Op::RmsNorm { eps } => self.row(node, RowKind::Norm { eps: *eps, centred: false }),
            Op::LayerNormGrad { eps } => {
                self.row(node, RowKind::NormGrad { eps: *eps, centred: true });
            }
            Op::RmsNormGrad { eps } => {
                self.row(node, RowKind::NormGrad { eps: *eps, centred: false });
            }
            Op::CrossEntropy { mult, mean } => self.cross_entropy(at, node, *mult, *mean),
            Op::CrossEntropyGrad { mult, mean } => self.cross_entropy_grad(at, node, *mult, *mean),
            Op::Attention { causal, logit_scale } => {
                self.attention(node, *causal, *logit_scale);
            }
            Op::AttentionGrad { causal, logit_scale, forward_alpha } => {
                self.attention_grad(node, *causal, *logit_scale, *forward_alpha);
            }
            // `is_native` leaves no other op.
            _ => {}
        }
    }

    fn map(&mut self, node: &Source, expr: Expr, operands: Vec<Operand>, shape: &Shape) {
        let result = self.rounded(node, 0);
        let out = self.result(node.outputs[0]);
        self.element(&node.name, Compute::Expr(expr), operands, shape, result, out);
    }

    fn row(&mut self, node: &Source, kind: RowKind) {
        let shape = self.shape(node.inputs[0]).clone();
        let mut operands: Vec<Operand> =
            node.inputs.iter().map(|&input| self.operand(input, &shape)).collect();
        // The gradient for a bias needs no operand of its own.
        let bias_gradient = matches!(kind, RowKind::NormGrad { .. }) && operands.len() > 3;
        operands.truncate(if bias_gradient { 3 } else { operands.len() });
        let result = self.rounded(node, 0);
        let out = self.result(node.outputs[0]);
        let (rows, width) = (shape.rows(), shape.last());
        let mut statistics = Vec::new();
        let [x, dy] = [0, 1].map(|at| operands.get(at).cloned());
        if let RowKind::NormGrad { centred, .. } = kind
            && node.outputs.len() > 1
        {
            for _ in 0..1 + usize::from(centred) {
                statistics.push(self.entry.tensor(rows, DType::F32, Home::Temporary));
            }
        }
        let row =
            Node::Row { kind, operands, rows, width, result, out, statistics: statistics.clone() };
        self.emit(&node.name, row);
        let (Some(x), Some(dy)) = (x, dy) else { return };
        // Gradients of weight and bias: sums over the rows.
        for output in 1..node.outputs.len() {
            let column = |tensor| {
                let access = Access::strided(&[rows, width], &[1, 0]);
                Operand { tensor, access, exact: false }
            };
            let (expr, operands) = match (output, &statistics[..]) {
                (1, [mean, rsigma]) => (
                    Expr::new(4, |x| x[1].clone() * ((x[0].clone() - x[2].clone()) * x[3].clone())),
                    vec![x.clone(), dy.clone(), column(*mean), column(*rsigma)],
                ),
                (1, [rsigma]) => (
                    Expr::new(3, |x| x[1].clone() * (x[0].clone() * x[2].clone())),
                    vec![x.clone(), dy.clone(), column(*rsigma)],
                ),
                _ => (Expr::identity(), vec![dy.clone()]),
            };
            let result = self.rounded(node, output);
            let out = self.result(node.outputs[output]);
            let (dims, axes) = (vec![rows, width], vec![0]);
            let kind = ReduceKind::Sum;
            let reduce = Node::Reduce { kind, expr, operands, dims, axes, result, out };
            self.emit(&node.name, reduce);
        }
    }

    fn mat_mul(&mut self, node: &Source, transpose_left: bool, transpose_right: bool) {
        let [left, right] = [0, 1].map(|at| self.shape(node.inputs[at]).dims().to_vec());
        let (lead, l) = left.split_at(left.len() - 2);
        let (right_lead, r) = right.split_at(right.len() - 2);
        let (mut m, k) = if transpose_left { (l[1], l[0]) } else { (l[0], l[1]) };
        let n = if transpose_right { r[0] } else { r[1] };
        let mut batch: usize = lead.iter().product();
        let right_batched = !right_lead.is_empty();
        if !right_batched && !transpose_left {
            m *= batch;
            batch = 1;
        }
        let dtype = |at: usize| self.graph.value(node.inputs[at]).dtype;
        let mut product = Product {
            m,
            n,
            k,
            batch,
            right_batched,
            left: dtype(0),
            right: dtype(1),
            left_by_k: !transpose_left,
            right_by_k: transpose_right,
            result: self.rounded(node, 0),
            steps: None,
            epilogue: Epilogue::None,
        };
        let [mut left, mut right] = [0, 1].map(|at| self.tensor_of(node.inputs[at]));
        let mut wanted = product;
        if is_fp8(&product) {
            (wanted.left_by_k, wanted.right_by_k) = (true, true);
        }
        let tensor_cores = self.abilities.runs_product(&wanted);
        if tensor_cores {
            if product.left_by_k != wanted.left_by_k {
                left = self.transposed_copy(left, k, m);
            }
            if product.right_by_k != wanted.right_by_k {
                right = self.transposed_copy(right, k, n);
            }
            product = wanted;
        }
        let out = self.result(node.outputs[0]);
        self.emit(&node.name, Node::MatMul { product, left, right, out, more: None, tensor_cores });
    }

    fn transposed_copy(&mut self, of: TensorId, rows: usize, columns: usize) -> TensorId {
        let known =
            self.transposed.iter().find(|&&(from, r, c, _)| (from, r, c) == (of, rows, columns));
        if let Some(&(.., copy)) = known {
            return copy;
        }
        let dtype = self.entry.tensors[of].dtype;
        let copy = self.entry.tensor(rows * columns, dtype, Home::Temporary);
        self.transposed.push((of, rows, columns, copy));
        copy
    }

    fn movement(&mut self, node: &Source, shape: &Shape) {
        let to = shape.strides();
        let from = self.shape(node.inputs[0]).strides();
        let whole = |from_strides: Vec<usize>, from_offset: usize| Copy {
            dims: shape.dims().to_vec(),
            from_offset,
            from_strides,
            to_offset: 0,
            to_strides: to.clone(),
        };
        let mut parts = Vec::new();
        match &node.op {
            // A matrix of bytes turns by tiles, in the kernel that makes it where that is possible.
            Op::Permute { axes }
                if axes[..] == [1, 0] && self.graph.value(node.inputs[0]).dtype.bytes() == 1 =>
            {
                let [rows, columns] = [0, 1].map(|axis| self.shape(node.inputs[0]).dims()[axis]);
                let from = self.tensor_of(node.inputs[0]);
                let out = self.result(node.outputs[0]);
                self.emit(&node.name, Node::Transpose { from, out, rows, columns });
                return;
            }
            Op::Permute { axes } => {
                let strides = axes.iter().map(|&axis| from[axis]).collect();
                parts.push((self.tensor_of(node.inputs[0]), whole(strides, 0)));
            }
            Op::Slice { axis, start, .. } => {
                let offset = start * from[*axis];
                parts.push((self.tensor_of(node.inputs[0]), whole(from, offset)));
            }
            Op::Concat { axis } => {
                let mut at = 0;
                for &input in &node.inputs {
                    let own = self.shape(input);
                    let copy = Copy {
                        dims: own.dims().to_vec(),
                        from_offset: 0,
                        from_strides: own.strides(),
                        to_offset: at * to[*axis],
                        to_strides: to.clone(),
                    };
                    at += own.dims()[*axis];
                    parts.push((self.tensor_of(input), copy));
                }
            }
            _ => {}
        }
        let out = self.result(node.outputs[0]);
        self.emit(&node.name, Node::Move { parts, out });
    }

    fn cross_entropy(&mut self, at: usize, node: &Source, mult: f64, mean: bool) {
        if self.pending.contains_key(&at) {
            return;
        }
        self.cross_entropy_parts(Some((node, mult, mean)), None);
    }

    fn cross_entropy_grad(&mut self, at: usize, node: &Source, mult: f64, mean: bool) {
        let loss = self.pending.iter().find(|(_, gradient)| **gradient == at);
        let loss = loss.map(|(&loss, _)| (&self.graph.nodes()[loss], mult, mean));
        self.cross_entropy_parts(loss, Some((node, mult, mean)));
    }

    fn cross_entropy_parts(
        &mut self,
        loss: Option<(&Source, f64, bool)>,
        gradient: Option<(&Source, f64, bool)>,
    ) {
        let Some((node, mult, mean)) = gradient.or(loss) else { return };
        let shape = self.shape(node.inputs[0]);
        let (rows, classes) = (shape.rows(), shape.last());
        let share = if mean { 1.0 / rows.max(1) as f64 } else { 1.0 };
        let own = gradient.map(|(node, ..)| {
            let mut result = self.rounded(node, 0);
            result.alpha *= mult * share;
            Gradient { result, upstream: self.graph.value(node.inputs[2]).dtype }
        });
        let op = CrossEntropy {
            rows,
            classes,
            logits: self.graph.value(node.inputs[0]).dtype,
            mult,
            loss: loss.is_some(),
            gradient: own,
        };
        let [logits, targets] = [0, 1].map(|at| self.tensor_of(node.inputs[at]));
        let upstream = gradient.map(|(node, ..)| self.tensor_of(node.inputs[2]));
        let losses = loss.map(|_| self.entry.tensor(rows, DType::F32, Home::Temporary));
        let gradient = gradient.map(|(node, ..)| self.result(node.outputs[0]));
        let cross = Node::CrossEntropy { op, logits, targets, upstream, losses, gradient };
        self.emit(&node.name, cross);
        if let (Some((node, ..)), Some(losses)) = (loss, losses) {
            let mut result = self.rounded(node, 0);
            result.alpha *= share;
            let out = self.result(node.outputs[0]);
            let reduce = Node::Reduce {
                kind: ReduceKind::Sum,
                expr: Expr::identity(),
                operands: vec![Self::full(losses)],
                dims: vec![rows],
                axes: vec![0],
                result,
                out,
            };
            self.emit(&node.name, reduce);
        }
    }

    /// `from` times `alpha` in the type of a value.
    fn scaled(
        &mut self,
        name: &str,
        from: TensorId,
        shape: &Shape,
        result: Rounded,
        out: TensorId,
    ) {
        let operands = vec![Self::full(from)];
        self.element(name, Compute::Expr(Expr::identity()), operands, shape, result, out);
    }

    fn attention(&mut self, node: &Source, causal: bool, scale: f64) {
        let spec = attention_spec(self.graph, node, causal, scale);
        let inputs = [0, 1, 2].map(|at| self.tensor_of(node.inputs[at]));
        let shape = self.shape(node.outputs[0]).clone();
        let raw = self.entry.tensor(shape.numel(), spec.dtype, Home::Library);
        let rows = spec.batch * spec.heads * spec.queries;
        let lse = self.entry.tensor(rows, DType::F32, Home::Library);
        self.emit(&node.name, Node::Attention { spec, inputs, out: raw, lse });
        let result = self.rounded(node, 0);
        let out = self.result(node.outputs[0]);
        self.scaled(&node.name, raw, &shape, result, out);
        self.raw.insert(out, (raw, lse));
        let lse_value = node.outputs[1];
        if self.graph.value(lse_value).dtype == DType::F32 && node.alpha[1] == 1.0 {
            self.of[lse_value.index()] = lse;
        } else {
            let shape = self.shape(lse_value).clone();
            let result = self.rounded(node, 1);
            let out = self.result(lse_value);
            self.scaled(&node.name, lse, &shape, result, out);
        }
    }

    fn attention_grad(&mut self, node: &Source, causal: bool, scale: f64, forward_alpha: f64) {
        let spec = attention_spec(self.graph, node, causal, scale);
        let [q, k, v, output, mut lse, mut dy] =
            [0, 1, 2, 3, 4, 5].map(|at| self.tensor_of(node.inputs[at]));
        let shape = self.shape(node.inputs[0]).clone();
        let plain = |alpha: f64| Rounded {
            alpha,
            dtype: spec.dtype,
            how: Conversion { rounding: Rounding::NearestEven, ..Conversion::SATURATE },
            stream: 0,
        };
        let raw = match self.raw.get(&output) {
            Some(&(raw, own_lse)) => {
                lse = own_lse;
                raw
            }
            None => {
                let raw = self.entry.tensor(shape.numel(), spec.dtype, Home::Temporary);
                self.scaled(&node.name, output, &shape, plain(1.0 / forward_alpha), raw);
                raw
            }
        };
        if self.entry.tensors[dy].dtype != spec.dtype {
            let cast = self.entry.tensor(shape.numel(), spec.dtype, Home::Temporary);
            self.scaled(&node.name, dy, &shape, plain(1.0), cast);
            dy = cast;
        }
        let outs = [0, 1, 2].map(|output| {
            let numel = self.shape(node.outputs[output]).numel();
            self.entry.tensor(numel, spec.dtype, Home::Library)
        });
        let inputs = [q, k, v, raw, lse, dy];
        self.emit(&node.name, Node::AttentionGrad { spec, inputs, outs });
        for (output, raw) in outs.into_iter().enumerate() {
            let shape = self.shape(node.outputs[output]).clone();
            let result = self.rounded(node, output);
            let out = self.result(node.outputs[output]);
            self.scaled(&node.name, raw, &shape, result, out);
        }
    }

    /// Puts each transposed copy behind what it copies, and drops what no one needs.
    fn finish(self) -> Entry {
        let Self { mut entry, transposed, .. } = self;
        // What stands before a node, by its index; what has no maker stands before all.
        let mut before: Vec<Vec<(Node, String)>> = vec![Vec::new(); entry.nodes.len() + 1];
        for (from, rows, columns, out) in transposed {
            let maker = entry.nodes.iter().position(|node| node.makes().contains(&from));
            let again = maker.and_then(|maker| recomputed(&entry, maker, out));
            let (at, from) = match (maker, again) {
                (Some(maker), Some(at)) => {
                    let Node::Element { compute, operands, dims, result, .. } =
                        entry.nodes[maker].clone()
                    else {
                        continue;
                    };
                    let (numel, dtype) = (entry.tensors[from].numel, entry.tensors[from].dtype);
                    let copy = entry.tensor(numel, dtype, Home::Temporary);
                    let node = Node::Element { compute, operands, dims, result, out: copy };
                    before[at].push((node, entry.names[maker].clone()));
                    (at, copy)
                }
                (Some(maker), None) => (maker + 1, from),
                (None, _) => (0, from),
            };
            let name = maker.map_or_else(String::new, |maker| entry.names[maker].clone());
            before[at].push((Node::Transpose { from, out, rows, columns }, name));
        }
        let Entry { tensors, nodes, names, writes, rows } = entry;
        let mut result = Entry { tensors, writes, rows, ..Entry::default() };
        let mut all: Vec<(Node, String)> = Vec::new();
        for (at, own) in nodes.into_iter().zip(names).enumerate() {
            all.append(&mut before[at]);
            all.push(own);
        }
        all.extend(before.into_iter().flatten());
        let mut needed = vec![false; result.tensors.len()];
        for &(_, tensor) in &result.writes {
            needed[tensor] = true;
        }
        let mut kept = Vec::new();
        for (node, name) in all.into_iter().rev() {
            if node.makes().iter().any(|&tensor| needed[tensor]) {
                node.reads().iter().for_each(|&tensor| needed[tensor] = true);
                kept.push((node, name));
            }
        }
        (result.nodes, result.names) = kept.into_iter().rev().unzip();
        result
    }
}

/// Where a tensor of node `maker`, of which only the transposed copy `copy` is needed late, is
/// better computed again than kept: before a later element-wise node that reads an operand of the
/// maker anyway (the gradient of an activation, say), if that comes before the copy is used.
fn recomputed(entry: &Entry, maker: usize, copy: TensorId) -> Option<usize> {
    let Node::Element { compute: Compute::Expr(_), operands, result, .. } = &entry.nodes[maker]
    else {
        return None;
    };
    let full = |operand: &Operand| operand.access == Access::Full;
    if result.draws() || !operands.iter().all(full) {
        return None;
    }
    let used = entry.nodes.iter().position(|node| node.reads().contains(&copy))?;
    (maker + 1..used).rev().find(|&at| {
        let Node::Element { operands: others, .. } = &entry.nodes[at] else { return false };
        others.iter().any(|other| {
            full(other) && operands.iter().any(|operand| operand.tensor == other.tensor)
        })
    })
}
