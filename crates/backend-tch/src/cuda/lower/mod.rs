//! From the graph of an entry to nodes over tensors.

mod attention;
mod finish;
mod losses;
mod movement;
mod products;
mod row;

use std::collections::HashMap;

use onesigma_format::Format;
use onesigma_graph::expr::Expr;
use onesigma_graph::passes::clean::clean;
use onesigma_graph::{DType, Graph, Node as Source, Op, Shape, ValueId, decompose};

use super::ir::{AttentionSpec, Entry, Home, Node, Operand, TensorId};
use super::source::group::{Access, Compute, Rounded};
use super::source::matmul::Product;
use super::source::rows::{self, RowKind};
use super::source::scatter::Scatter;
use attention::attention_spec;
use losses::losses_with_gradient;

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
        Op::CrossEntropy { .. } | Op::CrossEntropyGrad { .. } => {
            graph.shape(node.inputs[0]).last() < 1 << 18
        }
        Op::Attention { causal, logit_scale } | Op::AttentionGrad { causal, logit_scale, .. } => {
            let spec = attention_spec(graph, node, causal, logit_scale);
            let same = |at: usize| graph.value(node.inputs[at]).dtype == spec.dtype;
            same(1) && same(2) && abilities.runs_attention(&spec)
        }
        Op::AdamW(_) => false,
        ref op if RowKind::of(op).is_some() => rows::fits(graph.shape(node.inputs[0]).last()),
        _ => true,
    }
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
        Rounded::of(self.graph, node, output)
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
            Op::CrossEntropy { mult, mean } => self.cross_entropy(at, node, *mult, *mean),
            Op::CrossEntropyGrad { mult, mean } => self.cross_entropy_grad(at, node, *mult, *mean),
            Op::Attention { causal, logit_scale } => {
                self.attention(node, *causal, *logit_scale);
            }
            Op::AttentionGrad { causal, logit_scale, forward_alpha } => {
                self.attention_grad(node, *causal, *logit_scale, *forward_alpha);
            }
            // `is_native` leaves no other op.
            op => {
                if let Some(kind) = RowKind::of(op) {
                    self.row(node, kind);
                }
            }
        }
    }

    fn map(&mut self, node: &Source, expr: Expr, operands: Vec<Operand>, shape: &Shape) {
        let result = self.rounded(node, 0);
        let out = self.result(node.outputs[0]);
        self.element(&node.name, Compute::Expr(expr), operands, shape, result, out);
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
}
