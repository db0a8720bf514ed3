//! What an entry is lowered to: tensors in device memory, and nodes over them.
//!
//! Reshapes are gone (they name the same tensor), scales and roundings stand with the results,
//! and every operand says how it is read.

use onesigma_graph::{DType, ReduceKind};

use super::source::cross_entropy::CrossEntropy;
use super::source::group::{Access, Compute, Rounded};
use super::source::matmul::{Epilogue, Product};
use super::source::movement::Copy;
use super::source::rows::RowKind;
use super::source::scatter::Scatter;

/// Index of a tensor of an entry.
pub(crate) type TensorId = usize;

/// Where a tensor lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Home {
    /// In the part of the arena that the plan assigns.
    Temporary,
    /// In a slot.
    Slot(usize),
    /// Where libtorch made it.
    Library,
}

/// A tensor of an entry.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub numel: usize,
    pub dtype: DType,
    pub home: Home,
}

impl Tensor {
    pub(crate) fn bytes(&self) -> usize {
        self.numel.saturating_mul(self.dtype.bytes())
    }
}

/// An operand of an element-wise op. In [`Access::Rows`], `ids` is the tensor of the ids.
#[derive(Clone, Debug)]
pub(crate) struct Operand {
    pub tensor: TensorId,
    pub access: Access,
    /// A NaN keeps its sign.
    pub exact: bool,
}

impl Operand {
    fn rename(&mut self, new: &dyn Fn(TensorId) -> TensorId) {
        self.tensor = new(self.tensor);
        if let Access::Rows { ids, .. } = &mut self.access {
            *ids = new(*ids);
        }
    }
}

/// What attention needs to know.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct AttentionSpec {
    pub batch: usize,
    pub queries: usize,
    pub keys: usize,
    pub heads: usize,
    pub key_heads: usize,
    pub width: usize,
    pub causal: bool,
    pub scale: f64,
    /// Type of queries, keys and values.
    pub dtype: DType,
}

/// A node over tensors.
#[derive(Clone, Debug)]
pub(crate) enum Node {
    /// An element-wise op.
    Element {
        compute: Compute,
        operands: Vec<Operand>,
        dims: Vec<usize>,
        result: Rounded,
        out: TensorId,
    },
    /// An op over rows. Statistics: mean (of a centred norm) and reciprocal deviation.
    Row {
        kind: RowKind,
        operands: Vec<Operand>,
        rows: usize,
        width: usize,
        result: Rounded,
        out: TensorId,
        statistics: Vec<TensorId>,
    },
    /// The transposed copy of a matrix of bytes.
    Transpose { from: TensorId, out: TensorId, rows: usize, columns: usize },
    /// A reduction.
    Reduce {
        kind: ReduceKind,
        expr: onesigma_graph::expr::Expr,
        operands: Vec<Operand>,
        dims: Vec<usize>,
        axes: Vec<usize>,
        result: Rounded,
        out: TensorId,
    },
    /// A matrix product; `tensor_cores` if the device's library runs it. `more` belongs to the
    /// product's epilogue: the sums that it keeps, or where it takes a derivative.
    MatMul {
        product: Product,
        left: TensorId,
        right: TensorId,
        out: TensorId,
        more: Option<TensorId>,
        tensor_cores: bool,
    },
    /// A movement of elements, in parts.
    Move { parts: Vec<(TensorId, Copy)>, out: TensorId },
    /// The gradient of an embedding.
    Scatter { op: Scatter, updates: TensorId, ids: TensorId, out: TensorId },
    /// Softmax and cross-entropy.
    CrossEntropy {
        op: CrossEntropy,
        logits: TensorId,
        targets: TensorId,
        upstream: Option<TensorId>,
        losses: Option<TensorId>,
        gradient: Option<TensorId>,
    },
    /// Unscaled attention; `out` and `lse` are made by the library.
    Attention { spec: AttentionSpec, inputs: [TensorId; 3], out: TensorId, lse: TensorId },
    /// Its gradients from `q, k, v, out, lse, d_out`, made by the library.
    AttentionGrad { spec: AttentionSpec, inputs: [TensorId; 6], outs: [TensorId; 3] },
}

impl Node {
    /// The tensors it reads.
    pub(crate) fn reads(&self) -> Vec<TensorId> {
        match self {
            Self::Element { operands, .. }
            | Self::Row { operands, .. }
            | Self::Reduce { operands, .. } => {
                let ids = operands.iter().filter_map(|operand| match operand.access {
                    Access::Rows { ids, .. } => Some(ids),
                    _ => None,
                });
                operands.iter().map(|operand| operand.tensor).chain(ids).collect()
            }
            Self::Transpose { from, .. } => vec![*from],
            Self::MatMul { product, left, right, more, .. } => {
                let more = more.filter(|_| product.epilogue == Epilogue::GeluGrad);
                [*left, *right].into_iter().chain(more).collect()
            }
            Self::Move { parts, .. } => parts.iter().map(|(from, _)| *from).collect(),
            Self::Scatter { updates, ids, .. } => vec![*updates, *ids],
            Self::CrossEntropy { logits, targets, upstream, .. } => {
                [Some(*logits), Some(*targets), *upstream].into_iter().flatten().collect()
            }
            Self::Attention { inputs, .. } => inputs.to_vec(),
            Self::AttentionGrad { inputs, .. } => inputs.to_vec(),
        }
    }

    /// Renames the tensors that it reads and those that it makes.
    pub(crate) fn rename(
        &mut self,
        read: &dyn Fn(TensorId) -> TensorId,
        made: &dyn Fn(TensorId) -> TensorId,
    ) {
        let each = |tensor: &mut TensorId, new: &dyn Fn(TensorId) -> TensorId| {
            *tensor = new(*tensor);
        };
        match self {
            Self::Element { operands, out, .. } | Self::Reduce { operands, out, .. } => {
                operands.iter_mut().for_each(|operand| operand.rename(read));
                each(out, made);
            }
            Self::Row { operands, out, statistics, .. } => {
                operands.iter_mut().for_each(|operand| operand.rename(read));
                each(out, made);
                statistics.iter_mut().for_each(|tensor| each(tensor, made));
            }
            Self::Transpose { from, out, .. } => {
                each(from, read);
                each(out, made);
            }
            Self::MatMul { product, left, right, out, more, .. } => {
                each(left, read);
                each(right, read);
                each(out, made);
                if let Some(more) = more {
                    each(more, if product.epilogue == Epilogue::Gelu { made } else { read });
                }
            }
            Self::Move { parts, out } => {
                parts.iter_mut().for_each(|(from, _)| each(from, read));
                each(out, made);
            }
            Self::Scatter { updates, ids, out, .. } => {
                each(updates, read);
                each(ids, read);
                each(out, made);
            }
            Self::CrossEntropy { logits, targets, upstream, losses, gradient, .. } => {
                each(logits, read);
                each(targets, read);
                upstream.iter_mut().for_each(|tensor| each(tensor, read));
                losses.iter_mut().chain(gradient).for_each(|tensor| each(tensor, made));
            }
            Self::Attention { inputs, out, lse, .. } => {
                inputs.iter_mut().for_each(|tensor| each(tensor, read));
                each(out, made);
                each(lse, made);
            }
            Self::AttentionGrad { inputs, outs, .. } => {
                inputs.iter_mut().for_each(|tensor| each(tensor, read));
                outs.iter_mut().for_each(|tensor| each(tensor, made));
            }
        }
    }

    /// The tensors it makes.
    pub(crate) fn makes(&self) -> Vec<TensorId> {
        match self {
            Self::Element { out, .. }
            | Self::Transpose { out, .. }
            | Self::Reduce { out, .. }
            | Self::Move { out, .. }
            | Self::Scatter { out, .. } => vec![*out],
            Self::MatMul { product, out, more, .. } => {
                let more = more.filter(|_| product.epilogue == Epilogue::Gelu);
                std::iter::once(*out).chain(more).collect()
            }
            Self::Row { out, statistics, .. } => {
                std::iter::once(*out).chain(statistics.iter().copied()).collect()
            }
            Self::CrossEntropy { losses, gradient, .. } => {
                losses.iter().chain(gradient).copied().collect()
            }
            Self::Attention { out, lse, .. } => vec![*out, *lse],
            Self::AttentionGrad { outs, .. } => outs.to_vec(),
        }
    }
}

/// A lowered entry.
#[derive(Clone, Debug, Default)]
pub(crate) struct Entry {
    pub tensors: Vec<Tensor>,
    pub nodes: Vec<Node>,
    /// Name of each node in the graph.
    pub names: Vec<String>,
    /// Slots that are written at the end.
    pub writes: Vec<(usize, TensorId)>,
    /// Temporary tensors of one size that lie one behind the other.
    pub rows: Vec<Vec<TensorId>>,
}

impl Entry {
    pub(crate) fn tensor(&mut self, numel: usize, dtype: DType, home: Home) -> TensorId {
        self.tensors.push(Tensor { numel, dtype, home });
        self.tensors.len() - 1
    }
}
