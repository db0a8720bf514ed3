//! Onesigma over candle-core: any device that candle has, chosen at run time.
//!
//! This is the worked example of a backend that only has kernels: it implements
//! [`Kernels`](onesigma_backend::Kernels), and the op-by-op executor does the rest. Products,
//! expressions, reductions, lookups and movement run on the device; rounding into a narrow format
//! and random numbers run on the host, so that they are the same bits as everywhere.
//!
//! Tensors occupy what their format says: F32, F16, BF16 and U32 are candle's own types, codes of
//! one byte are U8, other codes are U8 with a last axis of two bytes. All arithmetic is in f32.
#![forbid(unsafe_code)]

mod codec;
mod expression;
mod kernels;

use candle_core::Device;
use onesigma_backend::{Error, OpByOp, Result};

pub use kernels::CandleKernels;

const NAME: &str = "candle";

/// The backend on the best device of this build: CUDA, then Metal, then the processor.
///
/// # Errors
/// [`Error::Device`] if candle refuses the device.
pub fn backend() -> Result<OpByOp<CandleKernels>> {
    let device = Device::cuda_if_available(0).or_else(|_| Device::metal_if_available(0));
    on_device(device.map_err(failed)?)
}

/// The backend on a device of candle's.
///
/// # Errors
/// [`Error::Device`] if candle refuses the device.
pub fn on_device(device: Device) -> Result<OpByOp<CandleKernels>> {
    Ok(OpByOp::new(CandleKernels::new(device)?))
}

fn failed(error: candle_core::Error) -> Error {
    Error::Device { backend: NAME.to_owned(), reason: error.to_string() }
}
