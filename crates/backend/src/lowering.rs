//! What an IR of a backend's own says of a node, whatever the device.
//!
//! A backend that compiles whole programs lowers each entry to work of its device: kernels to be
//! generated, calls of a library, views. How operands are found, what is fused and where tensors
//! lie differs from device to device, so every such backend has an IR of its own. What is the same
//! for all of them stands here and in [`HostSlot`](crate::HostSlot).
//!
//! ```
//! use onesigma_backend::lowering::{Rounded, RowKind};
//! use onesigma_graph::{Graph, Node};
//!
//! fn lower(graph: &Graph, node: &Node) {
//!     let result = Rounded::of(graph, node, 0);
//!     if let Some(kind) = RowKind::of(&node.op) {
//!         println!("a kernel over rows: {kind:?}, into {}", result.dtype);
//!     }
//! }
//! ```

use onesigma_format::Conversion;
use onesigma_graph::{DType, Graph, Node, Op};

/// How a result is scaled and rounded: the end of every kernel.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rounded {
    /// Factor before rounding.
    pub alpha: f64,
    /// Type of the result.
    pub dtype: DType,
    /// Rounding and overflow rule.
    pub how: Conversion,
    /// Stream of its random bits.
    pub stream: u32,
}

impl Rounded {
    /// F32, unscaled: nothing is left to do.
    pub const PLAIN: Self =
        Self { alpha: 1.0, dtype: DType::F32, how: Conversion::SATURATE, stream: 0 };

    /// That of result `output` of a node.
    pub fn of(graph: &Graph, node: &Node, output: usize) -> Self {
        let value = graph.value(node.outputs[output]);
        Self {
            alpha: node.alpha[output],
            dtype: value.dtype,
            how: value.conversion,
            stream: node.stream_of(output),
        }
    }

    /// Random bits that an element needs; 0 for deterministic rules, and for F32, which results
    /// are before they are rounded.
    pub fn random_bits(&self) -> u32 {
        if self.is_f32() { 0 } else { self.how.random_bits() }
    }

    /// Whether the result depends on the program's seed and step.
    pub fn draws(&self) -> bool {
        self.random_bits() > 0
    }

    /// Whether the result is kept as it is computed.
    pub fn is_f32(&self) -> bool {
        self.dtype == DType::F32
    }
}

/// An op that reads whole rows, of which each element of the result needs a sum or a maximum:
/// norms and softmax, forward and backward.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum RowKind {
    /// `(x - mean) / sigma`, without the mean unless `centred`; operands `x`, and a weight and a
    /// bias if there are.
    Norm {
        /// Added to the variance.
        eps: f64,
        /// Layer norm; else RMS norm.
        centred: bool,
    },
    /// Its gradients; operands `x, dy`, then weight and bias of the norm. The first result is the
    /// gradient for `x`, others are sums over rows.
    NormGrad {
        /// Added to the variance.
        eps: f64,
        /// Layer norm; else RMS norm.
        centred: bool,
    },
    /// `softmax(mult x)`; operand `x`.
    Softmax {
        /// Factor on the operand.
        mult: f64,
    },
    /// Its gradient; operands `y, dy`.
    SoftmaxGrad {
        /// Factor on the operand of the softmax.
        mult: f64,
        /// Scale that `y` carries.
        forward_alpha: f64,
    },
}

impl RowKind {
    /// That of an op; `None` for all others.
    pub fn of(op: &Op) -> Option<Self> {
        Some(match *op {
            Op::LayerNorm { eps } => Self::Norm { eps, centred: true },
            Op::RmsNorm { eps } => Self::Norm { eps, centred: false },
            Op::LayerNormGrad { eps } => Self::NormGrad { eps, centred: true },
            Op::RmsNormGrad { eps } => Self::NormGrad { eps, centred: false },
            Op::Softmax { mult } => Self::Softmax { mult },
            Op::SoftmaxGrad { mult, forward_alpha } => Self::SoftmaxGrad { mult, forward_alpha },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use onesigma_format::{Format, Rounding};
    use onesigma_graph::{Module, Role, SlotKind};

    use super::*;

    #[test]
    fn a_result_has_its_own_scale_type_and_stream() -> onesigma_graph::Result<()> {
        let mut module = Module::new();
        let slot = module.slot("x", SlotKind::Input, [2, 3, 4, 8], DType::F32, Role::Activation)?;
        let mut graph = Graph::with_streams_from(7);
        let x = module.read(&mut graph, slot);
        let how = Conversion { rounding: Rounding::Stochastic { bits: 16 }, ..Conversion::SPECIAL };
        let to = DType::Float(Format::E4M3);
        graph.op(Op::Cast { to }, &[x]).alpha(3.0).stored_as(to, how).one()?;
        graph.op(Op::Attention { causal: true, logit_scale: 1.0 }, &[x, x, x]).all()?;
        let [_, cast, attention] = graph.nodes() else { panic!("three nodes") };
        let rounded = Rounded::of(&graph, cast, 0);
        assert_eq!(rounded, Rounded { alpha: 3.0, dtype: to, how, stream: 8 });
        assert_eq!((rounded.random_bits(), rounded.draws()), (16, true));
        let lse = Rounded::of(&graph, attention, 1);
        assert_eq!(lse, Rounded { stream: 9 + (1 << 24), ..Rounded::PLAIN });
        Ok(())
    }

    #[test]
    fn what_stays_f32_draws_nothing() {
        let how = Conversion { rounding: Rounding::Stochastic { bits: 8 }, ..Conversion::SATURATE };
        assert!(!Rounded { how, ..Rounded::PLAIN }.draws());
        assert!(Rounded { how, dtype: DType::Float(Format::BF16), ..Rounded::PLAIN }.draws());
        assert!(!Rounded { dtype: DType::Float(Format::BF16), ..Rounded::PLAIN }.draws());
    }

    #[test]
    fn ops_over_rows_are_told_apart() {
        let kind = |op| RowKind::of(&op);
        assert_eq!(
            kind(Op::LayerNorm { eps: 1e-5 }),
            Some(RowKind::Norm { eps: 1e-5, centred: true })
        );
        assert_eq!(
            kind(Op::RmsNormGrad { eps: 1e-5 }),
            Some(RowKind::NormGrad { eps: 1e-5, centred: false })
        );
        assert_eq!(
            kind(Op::SoftmaxGrad { mult: 2.0, forward_alpha: 3.0 }),
            Some(RowKind::SoftmaxGrad { mult: 2.0, forward_alpha: 3.0 })
        );
        assert_eq!(kind(Op::Gather), None);
    }
}
