//! The backend: a device of libtorch, and engines for it.

use onesigma_backend::{Backend, Caps, Engine, OpByOp, Result, Support};
use onesigma_graph::{DType, Op, Program};

use crate::NAME;
use crate::cpu::TorchKernels;

/// Runs programs on a device of libtorch.
#[derive(Debug)]
pub struct TchBackend {
    cpu: OpByOp<TorchKernels>,
}

impl TchBackend {
    /// On libtorch's CPU device, op by op.
    pub fn cpu() -> Self {
        Self { cpu: OpByOp::new(TorchKernels) }
    }
}

impl Backend for TchBackend {
    fn name(&self) -> &str {
        NAME
    }

    fn caps(&self) -> Caps {
        self.cpu.caps()
    }

    fn supports(&self, op: &Op, inputs: &[DType], output: DType) -> Support {
        self.cpu.supports(op, inputs, output)
    }

    fn compile(&self, program: &Program) -> Result<Box<dyn Engine>> {
        self.cpu.compile(program)
    }
}
