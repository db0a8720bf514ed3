//! Unit-scaled rules and layers on the Onesigma graph, constraints and recipes.
//!
//! Each layer is one function over a [`Graph`](onesigma_graph::Graph) that takes a
//! [`Parametrisation`]: regular layers have every scale 1, unit-scaled ones carry forward and
//! backward scales by the choices of a [`Scheme`] (arXiv 2303.11257, 2407.17465 or 2502.05967). The
//! scales themselves are plain functions of shapes
//! (`*_scales`), so that they can be printed, tested and proved without a graph.
//!
//! ```
//! use onesigma_graph::{DType, Graph, Module, Role, SlotKind};
//! use onesigma_ops::{Linear, Parametrisation, linear};
//!
//! # fn main() -> Result<(), onesigma_ops::Error> {
//! let mut module = Module::new();
//! let x = module.slot("x", SlotKind::Input, [8, 16], DType::F32, Role::Data)?;
//! let w = module.slot("w", SlotKind::State, [64, 16], DType::F32, Role::MasterWeight)?;
//! let mut graph = Graph::new();
//! let (x, w) = (module.read(&mut graph, x), module.read(&mut graph, w));
//! let y = linear(&mut graph, Parametrisation::Unit, x, w, None, Linear::unconstrained())?;
//! let node = graph.node(graph.value(y).producer);
//! assert_eq!(node.alpha, [0.25]); // fan_in^-1/2
//! assert_eq!(node.beta, [0.125, 8_f64.powf(-0.5)]); // fan_out^-1/2, batch^-1/2
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod activation;
mod attention;
mod blocks;
mod constraint;
mod conv;
mod dropout;
mod elementwise;
mod embedding;
mod error;
mod learning_rate;
mod linear;
mod loss;
mod masked_loss;
mod nearest;
mod norm;
mod parametrisation;
pub mod recipes;
mod residual;
pub mod rules;
mod scales;
mod softmax;
mod sum;
mod tanh;
pub mod unit_scale;
pub mod verify;
mod weighted_add;

pub use activation::{GeluForm, gelu, gelu_scales, silu, silu_glu, silu_glu_scales, silu_scales};
pub use attention::{Attention, attention, masked_attention};
pub use blocks::{MhsaWeights, MlpWeights, TransformerLayer, mhsa, mlp, transformer_layer};
pub use constraint::Constraint;
pub use conv::{Conv1d, ConvSizes, conv1d};
pub use dropout::{dropout, dropout_scales};
pub use elementwise::{
    elementwise, gaussian_scales, hardtanh, hardtanh_scales, relu, relu_scales, sigmoid,
    sigmoid_scales,
};
pub use embedding::{embedding, embedding_scales};
pub use error::{Error, Result};
pub use learning_rate::{LearningRateRule, ParamKind, RateFactor};
pub use linear::{Linear, linear, linear_readout, matmul, matmul_scales};
pub use loss::{cross_entropy, cross_entropy_scales, mse_loss, mse_loss_scales};
pub use masked_loss::{masked_cross_entropy, masked_cross_entropy_scales};
pub use nearest::nearest;
pub use norm::{layer_norm, norm_scales, rms_norm};
pub use parametrisation::{NormPlacement, OpScales, Parametrisation, Scheme};
pub use residual::{
    ResidualRule, TransformerResidual, add, add_scales, fixed_share, residual_add, residual_apply,
    residual_factors, residual_split,
};
pub use scales::{Scales, log_mix};
pub use softmax::{softmax, softmax_scales};
pub use sum::{sum, sum_scales};
pub use tanh::{tanh, tanh_scales};
pub use verify::verify;
pub use weighted_add::{weighted_add, weighted_add_scales};

/// The examples of the book's chapter on rules.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/src/rules.md")]
struct Book;

/// The examples of the book's introduction to unit scaling.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/src/unit-scaling.md")]
struct TenMinutes;
