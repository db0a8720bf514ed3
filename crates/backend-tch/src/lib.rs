//! The libtorch backend of Onesigma: CUDA with FP8 on the tensor cores, and libtorch's CPU device.
//!
//! [`TchBackend::cpu`] runs programs op by op on libtorch's CPU device.

mod backend;
mod cpu;
mod cuda;

pub use backend::{CudaMemory, TchBackend, cuda_memory, cuda_supports};
