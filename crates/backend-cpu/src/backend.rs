//! The backend: what this machine's processor can do, and engines for it.

use std::sync::Arc;

use onesigma_backend::{Backend, Caps, Device, Engine, Error, Result, Support};
use onesigma_graph::{DType, Op, Program};

use crate::Isa;
use crate::engine::CpuEngine;
use crate::instruction::supports;

pub(crate) const NAME: &str = "cpu";

/// Runs programs on the processor: every op and every float format natively.
///
/// Low-precision tensors occupy their one or two bytes. Results are the same for any number of
/// threads; they may differ in the last bits between instruction sets ([`Isa`]).
///
/// ```
/// use onesigma_backend::Backend;
/// let backend = onesigma_backend_cpu::CpuBackend::new();
/// assert!(backend.caps().deterministic);
/// ```
#[derive(Clone, Debug, Default)]
pub struct CpuBackend {
    pool: Option<Arc<rayon::ThreadPool>>,
}

impl CpuBackend {
    /// On all processors: rayon's global pool.
    pub fn new() -> Self {
        Self::default()
    }

    /// On `threads` threads of its own.
    ///
    /// # Errors
    /// [`Error::Device`] if the threads cannot be started.
    pub fn with_threads(threads: usize) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|at| format!("onesigma-cpu-{at}"))
            .build()
            .map_err(|error| Error::Device { backend: NAME.into(), reason: error.to_string() })?;
        Ok(Self { pool: Some(Arc::new(pool)) })
    }

    fn threads(&self) -> usize {
        match &self.pool {
            Some(pool) => pool.current_num_threads(),
            None => rayon::current_num_threads(),
        }
    }
}

impl Backend for CpuBackend {
    fn name(&self) -> &str {
        NAME
    }

    fn caps(&self) -> Caps {
        let model = processor_model().unwrap_or_else(|| std::env::consts::ARCH.to_owned());
        let device = format!("{model}, {} threads, {}", self.threads(), Isa::current().label());
        Caps { device, memory_bytes: memory_bytes(), deterministic: true }
    }

    fn supports(&self, op: &Op, inputs: &[DType], output: DType) -> Support {
        supports(op, inputs, output)
    }

    fn limits(&self) -> Option<Device> {
        let measure = || crate::limits::measure(memory_bytes().unwrap_or_default());
        Some(match &self.pool {
            Some(pool) => pool.install(measure),
            None => measure(),
        })
    }

    fn compile(&self, program: &Program) -> Result<Box<dyn Engine>> {
        let engine = CpuEngine::new(program, self.pool.clone(), memory_bytes())?;
        Ok(Box::new(engine))
    }
}

fn processor_model() -> Option<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn memory_bytes() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}
