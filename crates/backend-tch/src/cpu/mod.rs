//! Programs on libtorch's CPU device: op by op, as tensors of libtorch.
//!
//! Every tensor holds the codes of its format, one or two bytes each, and is decoded to f32 when
//! an op reads it. Arithmetic is libtorch's; the final rounding is the codec of
//! `onesigma-format`, so that casts and random numbers have the same bits as everywhere.

mod expression;
mod kernels;
mod tensor;

pub(crate) use kernels::{TorchKernels, types_fit};
pub(crate) use tensor::kind;

/// Name of the backend.
pub(crate) const NAME: &str = "tch-cpu";
