//! Programs on any GPU that wgpu reaches: Vulkan, Metal, DirectX 12 and, in browsers, WebGPU.
//!
//! [`WgpuBackend::open`] takes the best adapter, or the one that is asked for. `compile` writes the
//! shaders of the whole program, makes all pipelines, buffers and bind groups, and `run` encodes
//! blocks of steps into one submission each. An entry is lowered to work over tensors (module
//! `lower`), fused as it is lowered (`fuse`), its memory is planned (`memory`), and kernels are
//! generated from templates in WGSL (`build`, `shader`).
//!
//! ```no_run
//! use onesigma_backend::Backend;
//! let backend = onesigma_backend_wgpu::WgpuBackend::open(None)?;
//! println!("{}", backend.caps().device);
//! # Ok::<(), onesigma_backend::Error>(())
//! ```

mod backend;
mod build;
mod check;
mod engine;
mod fuse;
mod gpu;
mod ir;
#[cfg(test)]
mod lost;
mod lower;
mod memory;
mod shader;

pub use backend::{CooperativeMatrices, Options, Tuning, WgpuBackend, adapters};
pub use engine::{StepTimes, WgpuEngine};

/// Name of the backend.
pub(crate) const NAME: &str = "wgpu";
