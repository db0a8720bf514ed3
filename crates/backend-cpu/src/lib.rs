//! The CPU backend of Onesigma: SIMD codecs, threads, low-precision GEMM.
//!
//! Kernels are plain functions over [`Input`] and [`Output`] slices. Low-precision tensors really
//! occupy their one or two bytes; a kernel decodes what it reads block by block into f32, computes
//! in f32 and rounds each result once. The vector unit is found at run time ([`Isa`]). Results
//! depend on sizes and on the instruction set, never on the number of threads.

pub mod adamw;
pub mod attention;
pub mod elementwise;
mod error;
pub mod gemm;
mod math;
pub mod norm;
mod parallel;
mod simd;
pub mod softmax;
mod tensor;

pub use error::Error;
pub use simd::Isa;
pub use tensor::{Input, Output};
