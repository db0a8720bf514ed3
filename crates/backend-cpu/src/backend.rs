//! The backend: what this machine's processor can do, and engines for it.

use std::sync::Arc;

use onesigma_backend::{Backend, Caps, Device, Engine, Error, Result, Support};
use onesigma_graph::{DType, Op, Program};

use crate::Isa;
use crate::engine::CpuEngine;
use crate::instruction::supports;
use crate::team::Team;

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
    team: Option<Arc<Team>>,
}

impl CpuBackend {
    /// On the threads that all such backends share: as many as the environment variable
    /// `ONESIGMA_THREADS` says, else `RAYON_NUM_THREADS`, else one for each processor.
    pub fn new() -> Self {
        Self::default()
    }

    /// On `threads` threads, the caller's and others of its own.
    ///
    /// # Errors
    /// [`Error::Device`] if the threads cannot be started.
    pub fn with_threads(threads: usize) -> Result<Self> {
        let team = Team::new(threads)
            .map_err(|error| Error::Device { backend: NAME.into(), reason: error.to_string() })?;
        Ok(Self { team: Some(Arc::new(team)) })
    }

    fn team(&self) -> &Arc<Team> {
        self.team.as_ref().unwrap_or_else(|| Team::global())
    }
}

impl Backend for CpuBackend {
    fn name(&self) -> &str {
        NAME
    }

    fn caps(&self) -> Caps {
        let model = processor_model().unwrap_or_else(|| std::env::consts::ARCH.to_owned());
        let device =
            format!("{model}, {} threads, {}", self.team().threads(), Isa::current().label());
        Caps { device, memory_bytes: memory_bytes(), deterministic: true }
    }

    fn supports(&self, op: &Op, inputs: &[DType], output: DType) -> Support {
        supports(op, inputs, output)
    }

    fn limits(&self) -> Option<Device> {
        let team = self.team();
        let bytes = memory_bytes().unwrap_or_default();
        Some(team.lead(|| crate::limits::measure(team, bytes)))
    }

    fn compile(&self, program: &Program) -> Result<Box<dyn Engine>> {
        let engine = CpuEngine::new(program, self.team().clone(), memory_bytes())?;
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
