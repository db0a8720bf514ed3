//! The CPU backend of Onesigma: SIMD codecs, threads, low-precision GEMM.
//!
//! Kernels are plain functions over [`Input`] and [`Output`] slices. Low-precision tensors really
//! occupy their one or two bytes; a kernel decodes what it reads block by block into f32, computes
//! in f32 and rounds each result once. The vector unit is found at run time ([`Isa`]). Results
//! depend on sizes and on the instruction set, never on the number of threads.

pub mod adamw;
mod arena;
pub mod attention;
mod backend;
mod codec;
pub mod elementwise;
mod engine;
mod error;
mod execute;
mod expression;
pub mod gemm;
mod instruction;
mod limits;
mod map;
mod math;
pub mod movement;
pub mod norm;
mod parallel;
mod profile;
pub mod random;
mod reduce;
pub mod rows;
mod schedule;
mod simd;
pub mod softmax;
mod team;
mod tensor;

pub use backend::CpuBackend;
pub use error::Error;
pub use simd::Isa;
pub use tensor::{Input, Output};

/// Runs `body` so that the kernels it calls use `threads` threads, this one among them.
///
/// # Errors
/// If the threads cannot be started.
pub fn on_threads<T>(threads: usize, body: impl FnOnce() -> T) -> std::io::Result<T> {
    Ok(team::Team::new(threads)?.lead(body))
}
