//! From the graph of an entry to work over tensors, in groups that run in one kernel.

mod element;
mod fused;
mod loss;
mod product;
mod reduce;
mod update;

use std::collections::HashMap;

use onesigma_graph::expr::Expr;
use onesigma_graph::passes::clean::clean;
use onesigma_graph::{DType, Graph, Node, Op, Program, Shape, ValueId, decompose};

use crate::fuse::Fusion;
use crate::ir::{Compute, Element, Entry, Home, Rounded, RowKind, TensorId, Work};
use crate::shader::{attention, rows};

/// What decides over kernels of fused ops.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Memory that a workgroup shares.
    pub shared_bytes: usize,
    /// Logits of an attention whose gradient runs as its decomposition.
    pub logits_bytes: usize,
}

impl Bounds {
    /// The decomposition of the gradient is twice as fast as its kernels (one H100, 512 tokens), which
    /// pay where the logits would take this much memory.
    pub(crate) const LOGITS_BYTES: usize = 1 << 30;
}

/// Lowers a graph; `bindings` is the most that a kernel may have.
///
/// # Errors
/// Those of [`decompose`].
pub(crate) fn lower(
    graph: &Graph,
    program: &Program,
    bindings: usize,
    bounds: Bounds,
) -> onesigma_graph::Result<Entry> {
    let parts = decompose(graph, |node| !is_native(graph, node, bindings, bounds))?;
    let graph = clean(&parts);
    let mut lowering = Lowering {
        graph: &graph,
        fusion: Fusion::new(bindings),
        of: vec![usize::MAX; graph.values().len()],
        bindings,
        statistics: HashMap::new(),
        corrections: HashMap::new(),
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
fn is_native(graph: &Graph, node: &Node, bindings: usize, bounds: Bounds) -> bool {
    match node.op {
        Op::Attention { .. } | Op::AttentionGrad { .. } => {
            let operands = |at: usize| graph.value(node.inputs[at]);
            let is_forward = matches!(node.op, Op::Attention { .. });
            // Operands and results of the kernel with the most of them, seed and step.
            let (statistic, needed) = match is_forward {
                true => (graph.value(node.outputs[1]), node.inputs.len() + 4),
                false => (operands(4), node.inputs.len() + 4),
            };
            let logits: usize = [operands(0).shape.dims(), &operands(1).shape.dims()[1..2]]
                .concat()
                .iter()
                .zip([1, 1, 1, 0, 1])
                .map(|(&dim, counts)| if counts == 1 { dim } else { 1 })
                .product();
            needed <= bindings
                && statistic.dtype == DType::F32
                && node.inputs.iter().all(|&input| graph.shape(input).numel() > 0)
                && (is_forward || 4 * logits > bounds.logits_bytes)
                && attention::fits(operands(0).shape.last(), bounds.shared_bytes)
        }
        Op::CrossEntropy { .. } | Op::CrossEntropyGrad { .. } => {
            let logits = graph.shape(node.inputs[0]);
            // The gradient with a mask has seven, and seed and step if it is rounded at random.
            logits.numel() > 0 && logits.last().is_multiple_of(4) && bindings >= 9
        }
        Op::AdamW(_) => true,
        ref op if RowKind::of(op).is_some() => rows::fits(graph.shape(node.inputs[0]).last()),
        _ => !node.op.is_fused(),
    }
}

struct Lowering<'a> {
    graph: &'a Graph,
    fusion: Fusion,
    /// Tensor of each value.
    of: Vec<TensorId>,
    bindings: usize,
    /// Statistics of cross-entropies, by logits and their factor.
    statistics: HashMap<(TensorId, u64), TensorId>,
    /// Corrections of the moments of AdamW, by step and decay.
    corrections: HashMap<(TensorId, u64), TensorId>,
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
        Rounded::of(self.graph, node, output)
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
            Op::Attention { causal, logit_scale } => self.attention(node, *causal, *logit_scale),
            Op::AttentionGrad { causal, logit_scale, forward_alpha } => {
                self.attention_grad(node, *causal, *logit_scale, *forward_alpha);
            }
            Op::CrossEntropy { mult, mean } => self.cross_entropy(node, *mult, *mean),
            Op::CrossEntropyGrad { mult, mean } => self.cross_entropy_grad(node, *mult, *mean),
            Op::AdamW(config) => self.adam_w(node, config),
            op => match RowKind::of(op) {
                Some(RowKind::NormGrad { eps, centred }) => self.norm_grad(node, eps, centred),
                Some(kind) => self.rows(node, kind),
                // `supports` denies what is not here.
                None => {}
            },
        }
    }
}
