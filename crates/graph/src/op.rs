//! The ops of the graph: few and general core ops, and fused ops that are defined by their
//! decomposition into core ops (see [`decompose`](crate::decompose)).

use crate::{DType, Shape, SlotId, expr::Expr};
use serde::{Deserialize, Serialize};

/// How a reduction combines elements.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReduceKind {
    /// Sum, accumulated in f32 or better.
    Sum,
    /// Maximum; NaN if any element is.
    Max,
}

/// What a [`Op::Random`] draws; Philox 4x32-10, keyed by the program's seed, the node's stream,
/// the step and the element's index.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Distribution {
    /// Uniform in `[low, high)`.
    Uniform {
        /// Lower end, included.
        low: f64,
        /// Upper end, excluded.
        high: f64,
    },
    /// Normal.
    Normal {
        /// Mean.
        mean: f64,
        /// Standard deviation.
        std: f64,
    },
    /// 1 with probability `p`, else 0.
    Bernoulli {
        /// Probability of 1.
        p: f64,
    },
}

/// Constants of [`Op::AdamW`] (Loshchilov and Hutter, arXiv 1711.05101), for one parameter.
///
/// With `t = step + 1` and `g = grad_factor * gradient`:
///
/// ```text
/// m' = beta1 m + (1 - beta1) g
/// v' = beta2 v + (1 - beta2) g^2
/// w' = w (1 - lr decay) - lr lr_scale (m' / (1 - beta1^t)) / (sqrt(v' / (1 - beta2^t)) + eps)
/// ```
///
/// The new weight is computed from m' and v' before they are rounded into their formats. A
/// `grad_factor` of exactly 0 skips the update: all three results equal the old values.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Weight decay per unit of learning rate.
    pub decay: f64,
    /// Factor on the learning rate, of this parameter.
    pub lr_scale: f64,
}

/// What a node computes. Every result is `alpha` times the function given here, rounded once into
/// the result's format; see [`Node`](crate::Node).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Op {
    /// Content of a slot when the entry starts. No operands.
    Slot(SlotId),

    /// Product of two matrices or batches of them: `left [.., m, k]`, `right [.., k, n]`, result
    /// `[.., m, n]`. Leading axes are equal, or `right` is one matrix for all of `left`'s (then
    /// `left` is not transposed).
    MatMul {
        /// `left` is stored `[.., k, m]`.
        transpose_left: bool,
        /// `right` is stored `[.., n, k]`.
        transpose_right: bool,
    },
    /// One scalar expression over operands that broadcast to `shape`.
    Map {
        /// The expression.
        expr: Expr,
        /// Shape of the result.
        shape: Shape,
    },
    /// Sum or maximum over `axes` of an expression over operands that broadcast to `shape`.
    Reduce {
        /// How elements are combined.
        kind: ReduceKind,
        /// The expression that is reduced.
        expr: Expr,
        /// Shape before the reduction.
        shape: Shape,
        /// Axes of `shape` that are reduced.
        axes: Vec<usize>,
        /// Reduced axes stay with size 1.
        keep_dims: bool,
    },
    /// Rows of `table [rows, d]` chosen by `ids U32 [..]`: `[.., d]`. An id beyond the table gives
    /// a row of NaN.
    Gather,
    /// Sum into row `ids[i]` of row `i` of `updates [.., d]`, operands `updates, ids`: `[rows, d]`.
    /// Ids beyond the table are dropped.
    ScatterAdd {
        /// Rows of the result.
        rows: usize,
    },
    /// Axes in a new order: axis `i` of the result is axis `axes[i]` of the operand.
    Permute {
        /// A permutation of the axes.
        axes: Vec<usize>,
    },
    /// The same elements in row-major order under another shape.
    Reshape {
        /// The new shape.
        shape: Shape,
    },
    /// A range of one axis.
    Slice {
        /// The axis.
        axis: usize,
        /// First index.
        start: usize,
        /// Number of indices.
        len: usize,
    },
    /// Operands one after another along an axis.
    Concat {
        /// The axis.
        axis: usize,
    },
    /// The operand in another element type.
    Cast {
        /// The new type.
        to: DType,
    },
    /// Random numbers; no operands.
    Random {
        /// What is drawn.
        distribution: Distribution,
        /// Shape of the result.
        shape: Shape,
    },

    /// `softmax(mult x)` over the last axis.
    Softmax {
        /// Factor on the operand.
        mult: f64,
    },
    /// Gradient of [`Op::Softmax`] from `y, dy`, where `y` is its result including its scale:
    /// `dx = mult s (dy - sum(dy s))`, `s = y / forward_alpha`.
    SoftmaxGrad {
        /// Factor of the forward op.
        mult: f64,
        /// Scale of the forward op.
        forward_alpha: f64,
    },
    /// `(x - mean) / sqrt(var + eps)` over the last axis, `* weight` and `+ bias` if given:
    /// operands `x [.., d]`, `x, weight [d]` or `x, weight, bias [d]`.
    LayerNorm {
        /// Added to the variance.
        eps: f64,
    },
    /// Gradients of [`Op::LayerNorm`] from `x, dy`, `x, dy, weight` or `x, dy, weight, bias`: for
    /// `x` and each parameter that is given.
    LayerNormGrad {
        /// As in the forward op.
        eps: f64,
    },
    /// `x / sqrt(mean(x^2) + eps)` over the last axis, `* weight` if given: operands `x [.., d]`
    /// or `x, weight [d]`.
    RmsNorm {
        /// Added to the mean square.
        eps: f64,
    },
    /// Gradients of [`Op::RmsNorm`] from `x, dy` or `x, dy, weight`: for `x` and the weight if it
    /// is given.
    RmsNormGrad {
        /// As in the forward op.
        eps: f64,
    },
    /// `softmax(logit_scale q k^T) v` for each head. Operands `q [batch, seq, heads, d]`,
    /// `k, v [batch, keys, kv_heads, d]`, where `kv_heads` divides `heads` and head `h` reads
    /// key-value head `h / (heads / kv_heads)`. Results: the output, shaped as `q`, and the
    /// log-sum-exp of the logits `[batch, heads, seq]` (always unscaled). With `causal`, query `i`
    /// sees keys `0 ..= i + keys - seq`. A fourth operand `mask U32 [batch, keys]` hides the keys
    /// where it is 0, the padding of a batch; a query that sees no key at all gives 0, with a
    /// log-sum-exp of negative infinity.
    Attention {
        /// Keys after the query's position are masked.
        causal: bool,
        /// Factor on the logits.
        logit_scale: f64,
    },
    /// Gradients of [`Op::Attention`] for `q, k, v` from `q, k, v, output, lse, d_output`, and the
    /// mask if the forward op has one.
    AttentionGrad {
        /// As in the forward op.
        causal: bool,
        /// As in the forward op.
        logit_scale: f64,
        /// Scale of the forward op, contained in its output.
        forward_alpha: f64,
    },
    /// `-ln softmax(mult logits)[target]`, mean or sum over all positions: operands
    /// `logits [.., classes]`, `targets U32 [..]`; a scalar. A target beyond the classes gives NaN.
    /// A third operand `mask U32 [..]` leaves out the positions where it is 0: the mean is over the
    /// others, 0 if there are none, and what the target of a position left out is does not matter.
    CrossEntropy {
        /// Factor on the logits.
        mult: f64,
        /// Mean instead of sum.
        mean: bool,
    },
    /// Gradient of [`Op::CrossEntropy`] for the logits from `logits, targets, d_loss`, and the mask
    /// if the forward op has one.
    CrossEntropyGrad {
        /// As in the forward op.
        mult: f64,
        /// As in the forward op.
        mean: bool,
    },
    /// AdamW update of one parameter. Operands `w, gradient, m, v` of one shape and the scalars
    /// `lr F32, step U32, grad_factor F32`; results `w', m', v'`. See [`AdamWConfig`].
    AdamW(AdamWConfig),
}

impl Op {
    /// The name as it stands in listings and messages.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Slot(_) => "Slot",
            Self::MatMul { .. } => "MatMul",
            Self::Map { .. } => "Map",
            Self::Reduce { .. } => "Reduce",
            Self::Gather => "Gather",
            Self::ScatterAdd { .. } => "ScatterAdd",
            Self::Permute { .. } => "Permute",
            Self::Reshape { .. } => "Reshape",
            Self::Slice { .. } => "Slice",
            Self::Concat { .. } => "Concat",
            Self::Cast { .. } => "Cast",
            Self::Random { .. } => "Random",
            Self::Softmax { .. } => "Softmax",
            Self::SoftmaxGrad { .. } => "SoftmaxGrad",
            Self::LayerNorm { .. } => "LayerNorm",
            Self::LayerNormGrad { .. } => "LayerNormGrad",
            Self::RmsNorm { .. } => "RmsNorm",
            Self::RmsNormGrad { .. } => "RmsNormGrad",
            Self::Attention { .. } => "Attention",
            Self::AttentionGrad { .. } => "AttentionGrad",
            Self::CrossEntropy { .. } => "CrossEntropy",
            Self::CrossEntropyGrad { .. } => "CrossEntropyGrad",
            Self::AdamW(_) => "AdamW",
        }
    }

    /// Whether the op is defined by a decomposition into core ops.
    pub const fn is_fused(&self) -> bool {
        matches!(
            self,
            Self::Softmax { .. }
                | Self::SoftmaxGrad { .. }
                | Self::LayerNorm { .. }
                | Self::LayerNormGrad { .. }
                | Self::RmsNorm { .. }
                | Self::RmsNormGrad { .. }
                | Self::Attention { .. }
                | Self::AttentionGrad { .. }
                | Self::CrossEntropy { .. }
                | Self::CrossEntropyGrad { .. }
                | Self::AdamW(_)
        )
    }

    /// Whether the op only moves elements, so that its result has its operand's element type.
    pub const fn is_movement(&self) -> bool {
        matches!(
            self,
            Self::Permute { .. } | Self::Reshape { .. } | Self::Slice { .. } | Self::Concat { .. }
        )
    }

    /// The attributes that matter to a reader, for listings.
    pub fn attributes(&self) -> String {
        match self {
            Self::Slot(slot) => slot.to_string(),
            Self::MatMul { transpose_left, transpose_right } => {
                let flag = |on: &bool| if *on { "T" } else { "N" };
                format!("{}{}", flag(transpose_left), flag(transpose_right))
            }
            Self::Map { expr, .. } => expr.to_string(),
            Self::Reduce { kind, expr, axes, .. } => format!("{kind:?} over {axes:?} of {expr}"),
            Self::ScatterAdd { rows } => format!("rows {rows}"),
            Self::Permute { axes } => format!("{axes:?}"),
            Self::Slice { axis, start, len } => {
                format!("axis {axis}, {start}..{}", start.saturating_add(*len))
            }
            Self::Concat { axis } => format!("axis {axis}"),
            Self::Random { distribution, .. } => format!("{distribution:?}"),
            Self::Softmax { mult } | Self::SoftmaxGrad { mult, .. } => format!("mult {mult}"),
            Self::LayerNorm { eps }
            | Self::LayerNormGrad { eps }
            | Self::RmsNorm { eps }
            | Self::RmsNormGrad { eps } => format!("eps {eps:e}"),
            Self::Attention { causal, logit_scale }
            | Self::AttentionGrad { causal, logit_scale, .. } => {
                format!("{}logits * {logit_scale}", if *causal { "causal, " } else { "" })
            }
            Self::CrossEntropy { mult, mean } | Self::CrossEntropyGrad { mult, mean } => {
                format!("{}, mult {mult}", if *mean { "mean" } else { "sum" })
            }
            Self::AdamW(config) => format!(
                "beta {} {}, eps {:e}, decay {}, lr_scale {}",
                config.beta1, config.beta2, config.eps, config.decay, config.lr_scale
            ),
            Self::Gather | Self::Reshape { .. } | Self::Cast { .. } => String::new(),
        }
    }
}
