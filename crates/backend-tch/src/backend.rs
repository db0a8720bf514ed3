//! The backend: a device of libtorch, and engines for it.

use std::rc::Rc;

use onesigma_backend::{Backend, Caps, Engine, OpByOp, Result, Support};
use onesigma_graph::{DType, Op, Program};

use crate::cpu::TorchKernels;
pub use crate::cuda::compiled::CudaMemory;
use crate::cuda::device::Device;
use crate::cuda::engine::DeviceEngine;

type Open = fn() -> Result<Rc<dyn Device>>;

/// Where programs run.
enum Target {
    Cpu(OpByOp<TorchKernels>),
    /// Makes the device of an engine.
    Device {
        name: &'static str,
        open: Open,
        caps: Caps,
        profile: bool,
        /// Bytes that an engine may use, if not all that are free.
        limit: Option<u64>,
    },
}

/// Runs programs on a device of libtorch.
pub struct TchBackend(Target);

impl std::fmt::Debug for TchBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("TchBackend").field(&self.caps().device).finish()
    }
}

impl TchBackend {
    /// On libtorch's CPU device, op by op.
    pub fn cpu() -> Self {
        Self(Target::Cpu(OpByOp::new(TorchKernels)))
    }

    /// On the first GPU.
    ///
    /// # Errors
    /// [`Unavailable`](onesigma_backend::Error::Unavailable) without a GPU of compute capability
    /// 8.9 or later, its driver, or libtorch's CUDA half; the message says what to install.
    pub fn cuda() -> Result<Self> {
        Self::on(crate::cuda::NAME, || Ok(Rc::new(crate::cuda::gpu::CudaDevice::open()?)))
    }

    /// The CUDA kernels, run on the host; for tests.
    ///
    /// # Errors
    /// [`Unavailable`](onesigma_backend::Error::Unavailable) without a C++ compiler.
    #[cfg(feature = "emulate")]
    pub fn emulated() -> Result<Self> {
        Self::on("emulated", || Ok(Rc::new(crate::cuda::emulated::Emulated::open()?)))
    }

    fn on(name: &'static str, open: Open) -> Result<Self> {
        let caps = open()?.caps();
        Ok(Self(Target::Device { name, open, caps, profile: false, limit: None }))
    }

    /// Engines on the GPU measure every instruction and list the times in the notes of their
    /// report; nothing is replayed. Other devices stay as they are.
    #[must_use]
    pub fn profiled(mut self) -> Self {
        if let Target::Device { profile, .. } = &mut self.0 {
            *profile = true;
        }
        self
    }

    /// Engines on the GPU use at most `bytes` of its memory, if not all that are free: where that
    /// is too little, tensors of the forward pass are computed again in the backward pass, the
    /// cheapest first, with the same bits. Other devices stay as they are.
    #[must_use]
    pub fn within(mut self, bytes: u64) -> Self {
        if let Target::Device { limit, .. } = &mut self.0 {
            *limit = Some(bytes);
        }
        self
    }
}

/// What the GPU runs of an op: what [`Backend::supports`] of [`TchBackend::cuda`] says, without a
/// GPU.
pub fn cuda_supports(op: &Op, inputs: &[DType], output: DType) -> Support {
    crate::cuda::supports(op, inputs, output)
}

/// What a program takes of a GPU's memory, kept within `limit` bytes if that can be had by
/// computing again. Needs no GPU.
///
/// # Errors
/// [`Graph`](onesigma_backend::Error::Graph) if the program is malformed.
pub fn cuda_memory(program: &Program, limit: Option<u64>) -> Result<CudaMemory> {
    program.validate()?;
    Ok(crate::cuda::compiled::compile(program, &crate::cuda::gpu::Libraries, limit)?.memory())
}

impl Backend for TchBackend {
    fn name(&self) -> &str {
        match &self.0 {
            Target::Cpu(backend) => backend.name(),
            Target::Device { name, .. } => name,
        }
    }

    fn caps(&self) -> Caps {
        match &self.0 {
            Target::Cpu(backend) => backend.caps(),
            Target::Device { caps, .. } => caps.clone(),
        }
    }

    fn supports(&self, op: &Op, inputs: &[DType], output: DType) -> Support {
        match &self.0 {
            Target::Cpu(backend) => backend.supports(op, inputs, output),
            Target::Device { .. } => cuda_supports(op, inputs, output),
        }
    }

    fn compile(&self, program: &Program) -> Result<Box<dyn Engine>> {
        match &self.0 {
            Target::Cpu(backend) => backend.compile(program),
            Target::Device { open, profile, limit, .. } => {
                Ok(Box::new(DeviceEngine::new(program, open()?, *profile, *limit)?))
            }
        }
    }
}
