//! Programs on CUDA: one arena, fused kernels compiled at run time, products by cuBLASLt,
//! attention by libtorch, whole steps replayed as CUDA graphs.
//!
//! An entry is [lowered](lower) to nodes over tensors, [fused](fuse) into tasks, [assembled] into
//! instructions, and its memory is [planned](plan). All of that is independent of the device, of
//! which there are two: the GPU, and an emulation on the host for tests.

mod assemble;
mod batch;
pub(crate) mod compiled;
mod derived;
pub(crate) mod device;
#[cfg(feature = "emulate")]
pub(crate) mod emulated;
pub(crate) mod engine;
mod epilogue;
mod fuse;
pub(crate) mod gpu;
mod ir;
mod lower;
mod plan;
mod profile;
mod recompute;
mod schedule;
mod source;

use onesigma_backend::Support;
use onesigma_graph::{DType, Op};

/// Name of the backend.
pub(crate) const NAME: &str = "cuda";

/// What a device makes of an op: everything that its types allow. Fused ops without kernels of
/// their own, and AdamW, which fusion makes one kernel again, run as their decomposition.
pub(crate) fn supports(op: &Op, inputs: &[DType], output: DType) -> Support {
    match crate::cpu::types_fit(op, inputs, output) {
        false => Support::No,
        true => Support::Native,
    }
}

#[cfg(test)]
#[allow(clippy::print_stdout)] // a skip says why
mod tests;
