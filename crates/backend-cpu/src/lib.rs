//! The CPU backend of Onesigma: SIMD codecs, threads, low-precision GEMM.
//!
//! Kernels are plain functions over [`Input`] and [`Output`] slices. Low-precision tensors really
//! occupy their one or two bytes; a kernel decodes what it reads block by block into f32, computes
//! in f32 and rounds each result once. The vector unit is found at run time ([`Isa`]). Results
//! depend on sizes and on the instruction set, never on the number of threads.

mod error;
pub mod gemm;
mod parallel;
mod simd;
mod tensor;

pub use error::Error;
pub use simd::Isa;
pub use tensor::{Input, Output};
