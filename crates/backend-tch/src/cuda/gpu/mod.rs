//! The GPU: one queue on libtorch's context, and what its libraries do on it.

mod cache;
mod compiler;
mod gemm;
mod library;
mod stream;
mod torch;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use onesigma_backend::{Caps, Error, Result};

use self::gemm::Gemm;
use self::library::Gpu;
use self::stream::Stream;
use super::NAME;
use super::compiled::WORKSPACE_BYTES;
use super::device::{Device, Function, Held, Prepared, Replay};
use super::ir::AttentionSpec;
use super::lower::Abilities;
use super::source::Kernel;
use super::source::matmul::Product;

/// An error of the driver or of a library.
fn failed(what: &str, error: impl std::fmt::Debug) -> Error {
    let reason = format!("{what}: {error:?}");
    Error::Device { backend: NAME.to_owned(), reason }
}

/// The device of one engine.
pub(crate) struct CudaDevice {
    gpu: &'static Gpu,
    stream: Stream,
    workspace: u64,
    gemms: RefCell<Vec<Gemm>>,
    replays: RefCell<Vec<stream::Graph>>,
    library_bytes: Rc<Counter>,
}

/// Bytes in use and their peak.
#[derive(Default)]
struct Counter {
    now: Cell<usize>,
    peak: Cell<usize>,
}

impl Counter {
    fn add(&self, bytes: usize) {
        self.now.set(self.now.get() + bytes);
        self.peak.set(self.peak.get().max(self.now.get()));
    }
}

impl CudaDevice {
    /// A queue on the first GPU.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with what to install.
    pub(crate) fn open() -> Result<Self> {
        let gpu = library::gpu()?;
        let stream = Stream::new()?;
        let workspace = stream.allocate(WORKSPACE_BYTES)?;
        Ok(Self {
            gpu,
            stream,
            workspace,
            gemms: RefCell::default(),
            replays: RefCell::default(),
            library_bytes: Rc::default(),
        })
    }
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        // Errors were reported where they occurred.
        let _ = self.stream.synchronize();
        self.replays.borrow_mut().clear();
        self.stream.free(self.workspace);
    }
}

impl Abilities for CudaDevice {
    fn runs_product(&self, product: &Product) -> bool {
        gemm::runs(product)
    }

    fn runs_attention(&self, spec: &AttentionSpec) -> bool {
        torch::runs(spec)
    }
}

impl Device for CudaDevice {
    fn caps(&self) -> Caps {
        Caps {
            device: self.gpu.name.clone(),
            memory_bytes: Some(self.gpu.memory_bytes),
            // cuDNN's gradient of attention adds in any order.
            deterministic: false,
        }
    }

    fn free_bytes(&self) -> Option<u64> {
        self.stream.free_bytes()
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        let address = self.stream.allocate(bytes)?;
        self.stream.clear(address, bytes)?;
        Ok(address)
    }

    fn free(&self, address: u64) {
        self.stream.free(address);
    }

    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.stream.upload(to, bytes)
    }

    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.stream.download(from, bytes)
    }

    fn clear(&self, address: u64, bytes: usize) -> Result<()> {
        self.stream.clear(address, bytes)
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.stream.copy(from, to, bytes)
    }

    fn compile(&self, kernels: &[&Kernel]) -> Result<Vec<Function>> {
        compiler::compile(self.gpu, kernels)
    }

    fn launch(&self, function: Function, kernel: &Kernel, arguments: &[u64]) -> Result<()> {
        self.stream.launch(function.0, kernel, arguments)
    }

    fn scramble(&self, address: u64, bytes: usize) -> Result<()> {
        self.stream.scramble(address, bytes)
    }

    fn prepare(&self, product: &Product, at: [u64; 4]) -> Result<Prepared> {
        let gemm = Gemm::new(self.gpu, product)?;
        gemm.tune(&self.stream, at, self.workspace)?;
        let mut gemms = self.gemms.borrow_mut();
        gemms.push(gemm);
        Ok(Prepared(gemms.len() - 1))
    }

    fn multiply(&self, prepared: Prepared, at: [u64; 4]) -> Result<()> {
        let gemms = self.gemms.borrow();
        gemms[prepared.0].run(&self.stream, at, self.workspace)
    }

    fn attention(&self, spec: &AttentionSpec, inputs: [u64; 3]) -> Result<[Rc<dyn Held>; 2]> {
        let made = torch::attention(self.gpu, &self.stream, spec, inputs)?;
        Ok(made.map(|tensor| torch::hold(tensor, &self.library_bytes)))
    }

    fn attention_grad(&self, spec: &AttentionSpec, inputs: [u64; 6]) -> Result<[Rc<dyn Held>; 3]> {
        let made = torch::attention_grad(self.gpu, &self.stream, spec, inputs)?;
        Ok(made.map(|tensor| torch::hold(tensor, &self.library_bytes)))
    }

    fn time(&self, queue: &mut dyn FnMut() -> Result<()>) -> Result<f32> {
        self.stream.time(queue)
    }

    fn synchronize(&self) -> Result<()> {
        self.stream.synchronize()
    }

    fn capture(&self, queue: &mut dyn FnMut() -> Result<()>) -> Result<Option<Replay>> {
        let graph = self.stream.capture(queue)?;
        let mut replays = self.replays.borrow_mut();
        replays.push(graph);
        Ok(Some(Replay(replays.len() - 1)))
    }

    fn replay(&self, replay: Replay) -> Result<()> {
        self.stream.replay(&self.replays.borrow()[replay.0])
    }

    fn library_bytes(&self) -> usize {
        WORKSPACE_BYTES + self.library_bytes.peak.get()
    }
}

/// What the libraries run on any GPU that is supported, without one.
pub(crate) struct Libraries;

impl Abilities for Libraries {
    fn runs_product(&self, product: &Product) -> bool {
        gemm::runs(product)
    }

    fn runs_attention(&self, spec: &AttentionSpec) -> bool {
        torch::runs(spec)
    }
}
