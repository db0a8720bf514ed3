//! What an entry is lowered to: tensors in device memory, and work on them in execution order.
//!
//! Reshapes are gone (they name the same tensor), scales and roundings stand with the results, and
//! every operand says how it is read.

pub(crate) use onesigma_backend::lowering::{Rounded, RowKind};
use onesigma_graph::expr::Expr;
use onesigma_graph::{AdamWConfig, DType, Distribution, ReduceKind};

use crate::shader::index::View;

/// Index of a tensor of an entry.
pub(crate) type TensorId = usize;

/// Where a tensor lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Home {
    /// In the part of the memory that the plan assigns.
    Temporary,
    /// In a slot.
    Slot(usize),
}

/// A tensor of an entry.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub numel: usize,
    pub dtype: DType,
    pub home: Home,
}

impl Tensor {
    /// Bytes in memory: whole quads, so that shaders read and write four elements at once.
    pub(crate) fn bytes(&self) -> usize {
        padded_bytes(self.numel, self.dtype).max(16)
    }
}

/// Bytes of whole quads.
pub(crate) fn padded_bytes(numel: usize, dtype: DType) -> usize {
    numel.div_ceil(4).saturating_mul(4 * dtype.bytes())
}

/// How an operand is found from the position of an element.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    /// By strides.
    View(View),
    /// Row `ids[position / width]` of a table; NaN beyond its rows.
    Rows { width: usize, rows: usize, ids: TensorId },
}

/// An operand of an element-wise op.
#[derive(Clone, Debug)]
pub(crate) struct Operand {
    pub tensor: TensorId,
    pub access: Access,
}

impl Operand {
    /// Element `i` for element `i`.
    pub(crate) fn full(tensor: TensorId, numel: usize) -> Self {
        Self { tensor, access: Access::View(View::new(&[numel], &[1], 0)) }
    }

    pub(crate) fn is_full(&self) -> bool {
        matches!(&self.access, Access::View(view) if view.is_full())
    }
}

/// What an element-wise op computes.
#[derive(Clone, Debug)]
pub(crate) enum Compute {
    /// A scalar expression.
    Expr(Expr),
    /// The operand's codes.
    Copy,
    /// The codes of the operand in whose part of an axis the element lies: extents outside and
    /// inside the axis, and where the parts end along it.
    Concat { inner: usize, ends: Vec<usize> },
    /// Random numbers.
    Random(Distribution),
    /// A result of a step of AdamW.
    AdamW(AdamWConfig, Updated),
}

/// Which result of a step of AdamW, with the operands of each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Updated {
    /// `w, gradient, m, v, lr, factor` and the corrections of both moments.
    Weight,
    /// `m, gradient, factor`.
    First,
    /// `v, gradient, factor`.
    Second,
}

/// An element-wise op.
#[derive(Clone, Debug)]
pub(crate) struct Element {
    pub compute: Compute,
    pub operands: Vec<Operand>,
    /// The index space.
    pub dims: Vec<usize>,
    pub result: Rounded,
    pub out: TensorId,
}

impl Element {
    /// Whether it works on values of its operands, loaded before all work.
    pub(crate) fn loads(&self) -> bool {
        matches!(self.compute, Compute::Expr(_) | Compute::Copy | Compute::AdamW(..))
    }

    /// Whether it needs seed and step.
    pub(crate) fn draws(&self) -> bool {
        self.result.draws() || matches!(self.compute, Compute::Random(_))
    }
}

/// A reduction over some axes of an index space, in F32.
#[derive(Clone, Debug)]
pub(crate) struct Reduction {
    pub kind: ReduceKind,
    pub expr: Expr,
    pub operands: Vec<(TensorId, Vec<usize>)>,
    pub dims: Vec<usize>,
    pub axes: Vec<usize>,
    pub alpha: f64,
    pub out: TensorId,
}

/// A product of matrices.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Product {
    pub batch: usize,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// The left operand is stored `[k, m]`.
    pub transpose_left: bool,
    /// The right operand is stored `[n, k]`.
    pub transpose_right: bool,
    pub left: TensorId,
    pub right: TensorId,
    pub result: Rounded,
    pub out: TensorId,
}

/// A factor of a [`Product`] as it is stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Factor {
    pub name: &'static str,
    pub tensor: TensorId,
    pub rows: usize,
    pub columns: usize,
    /// Whether rows run along the inner axis.
    pub along_inner: bool,
    /// The size of the axis that is the result's too.
    pub extent: usize,
}

impl Product {
    /// The left factor and the right one.
    pub(crate) fn factors(&self) -> [Factor; 2] {
        [
            ("left", self.left, !self.transpose_left, self.m),
            ("right", self.right, self.transpose_right, self.n),
        ]
        .map(|(name, tensor, along_inner, extent)| {
            let (rows, columns) = if along_inner { (extent, self.k) } else { (self.k, extent) };
            Factor { name, tensor, rows, columns, along_inner, extent }
        })
    }
}

/// An op over rows, whose width is a multiple of four.
#[derive(Clone, Debug)]
pub(crate) struct Rows {
    pub kind: RowKind,
    pub rows: usize,
    pub width: usize,
    /// Those of the size of the matrix, then weight and bias.
    pub operands: Vec<TensorId>,
    pub result: Rounded,
    /// `None` where only statistics are wanted.
    pub out: Option<TensorId>,
    /// Statistics of the rows, in F32.
    pub statistics: Vec<TensorId>,
}

/// What of a cross-entropy is worked out.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum ClassesKind {
    /// The statistics, and the loss of each row.
    Forward { losses: Option<TensorId> },
    /// The gradient for the logits. `count` is the number of rows that the mask counts, by which
    /// they are divided.
    Grad { d_loss: TensorId, count: Option<TensorId>, result: Rounded, out: TensorId },
}

/// Cross-entropy of rows of logits, whose width is a multiple of four.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Classes {
    pub rows: usize,
    pub width: usize,
    /// Factor on the logits.
    pub mult: f64,
    pub logits: TensorId,
    pub targets: TensorId,
    pub mask: Option<TensorId>,
    /// Of each row the largest logit and the sum of exponentials beside it, in F32.
    pub statistics: TensorId,
    pub kind: ClassesKind,
}

/// What of attention is worked out.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum AttentionKind {
    /// The output, and the log-sum-exp of the logits with its scale.
    Forward { out: (Rounded, TensorId), lse: (f64, TensorId) },
    /// The gradient for queries; `along` is `sum(dy y)` of each row of the output, unscaled.
    QueryGrad { dy: TensorId, lse: TensorId, along: TensorId, out: (Rounded, TensorId) },
    /// The gradients for keys and values.
    KeyGrad {
        dy: TensorId,
        lse: TensorId,
        along: TensorId,
        dk: (Rounded, TensorId),
        dv: (Rounded, TensorId),
    },
}

/// Attention or a gradient of it, in one kernel.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Attention {
    pub batch: usize,
    pub queries: usize,
    pub keys: usize,
    pub heads: usize,
    pub kv_heads: usize,
    /// Size of a head.
    pub width: usize,
    pub causal: bool,
    pub scale: f64,
    pub q: TensorId,
    pub k: TensorId,
    pub v: TensorId,
    pub mask: Option<TensorId>,
    pub kind: AttentionKind,
}

/// Rows of updates summed into the rows of a table.
#[derive(Clone, Debug)]
pub(crate) struct Scatter {
    pub rows: usize,
    pub count: usize,
    pub width: usize,
    pub updates: TensorId,
    pub ids: TensorId,
    /// Ids in order, and the positions they come from.
    pub sorted: TensorId,
    pub order: TensorId,
    /// Where the updates of each row begin in that order, and the end of the last.
    pub starts: TensorId,
    pub alpha: f64,
    pub out: TensorId,
}

/// A piece of work: one or a few dispatches.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    Group(Vec<Element>),
    /// A reduction, in parts.
    Reduce(Reduction, usize),
    Product(Product),
    Rows(Rows),
    Classes(Classes),
    Attention(Attention),
    Scatter(Scatter),
}

impl Work {
    /// The tensors that it reads and does not make.
    pub(crate) fn reads(&self) -> Vec<TensorId> {
        let mut reads = match self {
            Self::Group(elements) => {
                let mut reads = Vec::new();
                let mut made = Vec::new();
                for element in elements {
                    for operand in &element.operands {
                        if let Access::Rows { ids, .. } = operand.access {
                            reads.push(ids);
                        }
                        reads.push(operand.tensor);
                    }
                    made.push(element.out);
                }
                reads.retain(|tensor| !made.contains(tensor));
                reads
            }
            Self::Reduce(op, _) => op.operands.iter().map(|(tensor, _)| *tensor).collect(),
            Self::Product(op) => vec![op.left, op.right],
            Self::Rows(op) => op.operands.clone(),
            Self::Classes(op) => {
                let mut reads = vec![op.logits, op.targets];
                reads.extend(op.mask);
                if let ClassesKind::Grad { d_loss, count, .. } = op.kind {
                    reads.extend([op.statistics, d_loss]);
                    reads.extend(count);
                }
                reads
            }
            Self::Attention(op) => {
                let mut reads = vec![op.q, op.k, op.v];
                reads.extend(op.mask);
                if let AttentionKind::QueryGrad { dy, lse, along, .. }
                | AttentionKind::KeyGrad { dy, lse, along, .. } = op.kind
                {
                    reads.extend([dy, lse, along]);
                }
                reads
            }
            Self::Scatter(op) => vec![op.updates, op.ids],
        };
        reads.sort_unstable();
        reads.dedup();
        reads
    }

    /// The tensors that it makes.
    pub(crate) fn makes(&self) -> Vec<TensorId> {
        match self {
            Self::Group(elements) => elements.iter().map(|element| element.out).collect(),
            Self::Reduce(op, _) => vec![op.out],
            Self::Product(op) => vec![op.out],
            Self::Rows(op) => op.out.iter().chain(&op.statistics).copied().collect(),
            Self::Classes(op) => match op.kind {
                ClassesKind::Forward { losses } => {
                    losses.into_iter().chain([op.statistics]).collect()
                }
                ClassesKind::Grad { out, .. } => vec![out],
            },
            Self::Attention(op) => match op.kind {
                AttentionKind::Forward { out, lse } => vec![out.1, lse.1],
                AttentionKind::QueryGrad { out, .. } => vec![out.1],
                AttentionKind::KeyGrad { dk, dv, .. } => vec![dk.1, dv.1],
            },
            Self::Scatter(op) => vec![op.sorted, op.order, op.starts, op.out],
        }
    }

    /// Pairs of an operand and a result that may lie in one place.
    pub(crate) fn in_place(&self) -> Vec<(TensorId, TensorId)> {
        // Each thread writes the quads that it has read.
        if let Self::Classes(Classes { logits, kind: ClassesKind::Grad { out, .. }, .. }) = self {
            return vec![(*logits, *out)];
        }
        let Self::Group(elements) = self else { return Vec::new() };
        let only_full = |tensor: TensorId| {
            elements.iter().all(|element| {
                element.operands.iter().all(|operand| {
                    let ids = matches!(operand.access, Access::Rows { ids, .. } if ids == tensor);
                    !ids && (operand.tensor != tensor || operand.is_full())
                })
            })
        };
        let reads = self.reads();
        let mut pairs = Vec::new();
        for element in elements {
            // Its own operands first: new weights take the place of old ones.
            let own = element.operands.iter().map(|operand| operand.tensor);
            for from in own.chain(reads.iter().copied()) {
                if reads.contains(&from) && only_full(from) && !pairs.contains(&(from, element.out))
                {
                    pairs.push((from, element.out));
                }
            }
        }
        pairs
    }
}

/// A lowered entry.
#[derive(Clone, Debug, Default)]
pub(crate) struct Entry {
    pub tensors: Vec<Tensor>,
    pub work: Vec<Work>,
    /// Name of each piece of work.
    pub names: Vec<String>,
    /// Slots that are written at the end.
    pub writes: Vec<(usize, TensorId)>,
    /// The slots with seed and step, if anything draws.
    pub seed: Option<TensorId>,
    pub step: Option<TensorId>,
}

impl Entry {
    pub(crate) fn tensor(&mut self, numel: usize, dtype: DType, home: Home) -> TensorId {
        self.tensors.push(Tensor { numel, dtype, home });
        self.tensors.len() - 1
    }
}
