//! Every tolerance of the suite, by op and format.
//!
//! A result may be any value between the roundings of `exact - budget` and `exact + budget` into
//! the declared format, by its declared conversion. So a narrow format needs no tolerance of its
//! own: where the budget crosses no tie, exactly one value is right. `exact` is the op in f64 on
//! the operands as they are stored.

use onesigma_graph::Op;

/// The budget of one op: `each * |exact| + scale * max|exact| + absolute` (the maximum over the
/// tensor), plus the smallest normal f32, which hardware may flush.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Tolerance {
    /// Relative to the element itself.
    pub each: f64,
    /// Relative to the largest element: for sums, in which large terms cancel.
    pub scale: f64,
    /// For results that may be nothing but the rounding of operands near 1 that cancel.
    pub absolute: f64,
}

const fn tolerance(each: f64, scale: f64) -> Tolerance {
    Tolerance { each, scale, absolute: 0.0 }
}

const fn cancelling(each: f64, scale: f64) -> Tolerance {
    Tolerance { each, scale, absolute: 1e-6 }
}

/// Half an f32 unit in the last place.
const HALF_ULP: f64 = 5.960_464_477_539_063e-8;

/// A graph of several ops in F32, gradients included.
pub const CHAIN: Tolerance = cancelling(2e-5, 1e-5);

/// Loss of a training step whose tensors are in narrow formats, against the same rounding in f64:
/// a sum in another order may round one code up or down.
pub const NARROW_LOSS: f64 = 0.02;

/// What an op may differ by.
pub fn of(op: &Op) -> Tolerance {
    match op {
        // Copies; the scale of a cast is one f32 product.
        Op::Slot(_) | Op::Permute { .. } | Op::Reshape { .. } | Op::Slice { .. } => {
            tolerance(0.0, 0.0)
        }
        Op::Concat { .. } => tolerance(0.0, 0.0),
        Op::Cast { .. } | Op::Gather => tolerance(3.0 * HALF_ULP, 0.0),
        // A few dozen products, f32 accumulation.
        Op::MatMul { .. } | Op::ScatterAdd { .. } => tolerance(4.0 * HALF_ULP, 2e-6),
        // Some f32 operations after another; polynomial approximations of exp and tanh.
        Op::Map { .. } => tolerance(3e-6, 3e-7),
        Op::Reduce { .. } => tolerance(3e-6, 2e-6),
        Op::Random { .. } => tolerance(4.0 * HALF_ULP, 2.0 * HALF_ULP),
        Op::Softmax { .. } => tolerance(5e-6, 2e-6),
        Op::SoftmaxGrad { .. } => cancelling(5e-6, 2e-6),
        Op::LayerNorm { .. } | Op::RmsNorm { .. } => tolerance(5e-6, 2e-6),
        Op::LayerNormGrad { .. } | Op::RmsNormGrad { .. } => cancelling(5e-6, 5e-6),
        Op::Attention { .. } => tolerance(5e-6, 3e-6),
        Op::AttentionGrad { .. } => cancelling(1e-5, 1e-5),
        Op::CrossEntropy { .. } | Op::CrossEntropyGrad { .. } => cancelling(5e-6, 2e-6),
        Op::AdamW(_) => tolerance(5e-6, 1e-6),
        _ => tolerance(5e-6, 5e-6),
    }
}
