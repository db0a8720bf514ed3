//! The backend: a device of libtorch, and engines for it.

use std::rc::Rc;

use onesigma_backend::{Backend, Caps, Engine, OpByOp, Result, Support};
use onesigma_graph::{DType, Op, Program};

use crate::NAME;
use crate::cpu::TorchKernels;
use crate::cuda::device::Device;
use crate::cuda::engine::DeviceEngine;

/// Where programs run.
enum Target {
    Cpu(OpByOp<TorchKernels>),
    /// Makes the device of an engine.
    Device {
        open: fn() -> Result<Rc<dyn Device>>,
        caps: Caps,
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

    /// The CUDA kernels, run on the host; for tests.
    ///
    /// # Errors
    /// [`Unavailable`](onesigma_backend::Error::Unavailable) without a C++ compiler.
    #[cfg(feature = "emulate")]
    pub fn emulated() -> Result<Self> {
        let open: fn() -> Result<Rc<dyn Device>> =
            || Ok(Rc::new(crate::cuda::emulated::Emulated::open()?));
        let caps = open()?.caps();
        Ok(Self(Target::Device { open, caps }))
    }
}

impl Backend for TchBackend {
    fn name(&self) -> &str {
        NAME
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
            Target::Device { .. } => crate::cuda::supports(op, inputs, output),
        }
    }

    fn compile(&self, program: &Program) -> Result<Box<dyn Engine>> {
        match &self.0 {
            Target::Cpu(backend) => backend.compile(program),
            Target::Device { open, .. } => Ok(Box::new(DeviceEngine::new(program, open()?)?)),
        }
    }
}
