//! The backend: an adapter, and engines for it.

use std::sync::Arc;

use onesigma_backend::{Backend, Caps, Engine, Error, Result, Support};
use onesigma_graph::{DType, Op, Program};

use crate::NAME;
use crate::check;
use crate::engine::WgpuEngine;
use crate::gpu::{self, Gpu};
use crate::shader::{codec, expression};

/// Which adapter is opened, and how much of it is used.
///
/// ```no_run
/// use onesigma_backend_wgpu::{Options, WgpuBackend, adapters};
/// for (number, adapter) in adapters().iter().enumerate() {
///     println!("{number}: {adapter}");
/// }
/// // The second one, with nothing that a browser might not have.
/// let options = Options { device: Some("1".into()), portable: true, ..Options::default() };
/// let backend = WgpuBackend::with(&options)?;
/// println!("{}", backend.abilities());
/// # Ok::<(), onesigma_backend::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// Its number in [`adapters`], or a part of its name; `None` for the first.
    pub device: Option<String>,
    /// No features and no limits beyond those that every WebGPU device has: what a browser may
    /// offer.
    pub portable: bool,
    /// Where products run on cooperative matrices.
    pub matrices: CooperativeMatrices,
    /// Buffers of at most this many bytes, for tests of tensors that do not fit into one binding.
    pub segment_bytes: Option<usize>,
    /// Tiles of products, for benchmarks.
    pub tuning: Tuning,
}

/// Which devices' cooperative matrices are used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CooperativeMatrices {
    /// Those of GPUs. Software drivers have them too, but take seconds to compile each shader and
    /// gain nothing.
    #[default]
    OnGpus,
    /// Those of software drivers, too: to test the kernels without a GPU.
    Everywhere,
    /// None.
    Nowhere,
}

/// Tiles of products, and kernels of attention, in place of those chosen by size.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tuning {
    /// On cooperative matrices: rows and columns of a workgroup, of a subgroup, elements of the
    /// inner axis.
    pub matrices: Option<[usize; 5]>,
    /// On the vector units: rows and columns of a workgroup, of a thread, elements of the inner
    /// axis, stages, threads of a subgroup in a row.
    pub vectors: Option<[usize; 7]>,
    /// Quads that a thread takes in element-wise kernels over narrow types.
    pub quads: Option<usize>,
    /// The gradient of attention runs as its decomposition while its logits take no more than this.
    pub logits_bytes: Option<usize>,
}

/// Runs programs through wgpu. Clones share the device.
#[derive(Clone, Debug)]
pub struct WgpuBackend {
    gpu: Arc<Gpu>,
    segment_bytes: usize,
    tuning: Tuning,
}

/// The adapters of this machine in words, best first: discrete GPUs, integrated ones, software. None
/// in a page, which cannot wait for them.
pub fn adapters() -> Vec<String> {
    if cfg!(target_family = "wasm") {
        return Vec::new();
    }
    let instance = gpu::instance();
    pollster::block_on(gpu::all_adapters(&instance)).iter().map(gpu::describe).collect()
}

impl WgpuBackend {
    /// On the adapter that `device` names by its number in [`adapters`] or a part of its name;
    /// `None` takes the first.
    ///
    /// # Errors
    /// [`Unavailable`](onesigma_backend::Error::Unavailable) without an adapter, or without the
    /// one that is asked for; the message lists those there are.
    pub fn open(device: Option<&str>) -> Result<Self> {
        Self::with(&Options { device: device.map(str::to_owned), ..Options::default() })
    }

    /// With all options.
    ///
    /// # Errors
    /// As [`open`](Self::open); always in a page, which cannot wait:
    /// [`open_async`](Self::open_async).
    pub fn with(options: &Options) -> Result<Self> {
        if cfg!(target_family = "wasm") {
            let reason = "a page cannot wait for a device: use `open_async`".to_owned();
            return Err(Error::Unavailable { backend: NAME.to_owned(), reason });
        }
        pollster::block_on(Self::open_async(options))
    }

    /// As [`with`](Self::with), for callers that can be suspended.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_async(options: &Options) -> Result<Self> {
        let backend = Self::unchecked(options).await?;
        match backend.matrices_fail() {
            None => Ok(backend),
            Some(reason) => {
                tracing::warn!(reason, "cooperative matrices failed their check and are not used");
                // A driver that fails over a shader takes the device with it.
                let matrices = CooperativeMatrices::Nowhere;
                Self::unchecked(&Options { matrices, ..options.clone() }).await
            }
        }
    }

    // A browser's device belongs to one thread.
    #[cfg_attr(target_family = "wasm", allow(clippy::arc_with_non_send_sync))]
    async fn unchecked(options: &Options) -> Result<Self> {
        let gpu = Arc::new(Gpu::open(options).await?);
        let most = gpu.segment_bytes();
        let wanted = options.segment_bytes.unwrap_or(most).next_multiple_of(256);
        Ok(Self { gpu, segment_bytes: wanted.min(most), tuning: options.tuning })
    }

    /// Why cooperative matrices cannot be used although the device has them.
    fn matrices_fail(&self) -> Option<String> {
        self.gpu.abilities.matrices?;
        match check::wrong_product(&self.gpu) {
            Ok(wrong) => wrong,
            Err(error) => Some(error.to_string()),
        }
    }

    /// What the shaders use of the device, in words.
    pub fn abilities(&self) -> String {
        self.gpu.abilities.describe()
    }

    /// The same device with other tiles.
    #[must_use]
    pub fn tuned(&self, tuning: Tuning) -> Self {
        Self { tuning, ..self.clone() }
    }

    /// As [`Backend::compile`], with the engine's own type.
    ///
    /// # Errors
    /// As [`Backend::compile`].
    pub fn engine(&self, program: &Program) -> Result<WgpuEngine> {
        WgpuEngine::new(program, Arc::clone(&self.gpu), self.segment_bytes, self.tuning)
    }
}

impl Backend for WgpuBackend {
    fn name(&self) -> &str {
        NAME
    }

    fn caps(&self) -> Caps {
        Caps {
            device: self.gpu.description.clone(),
            memory_bytes: self.gpu.memory_bytes,
            deterministic: true,
        }
    }

    fn flushes_subnormals(&self) -> bool {
        // A device that cannot say will fail where it is used.
        check::subnormals_are_flushed(&self.gpu).unwrap_or(false)
    }

    fn supports(&self, op: &Op, inputs: &[DType], output: DType) -> Support {
        supports(op, inputs, output)
    }

    fn compile(&self, program: &Program) -> Result<Box<dyn Engine>> {
        Ok(Box::new(self.engine(program)?))
    }
}

/// What runs: every op with the types it takes, if the shaders have codecs for them.
pub(crate) fn supports(op: &Op, inputs: &[DType], output: DType) -> Support {
    let float = |dtype: &DType| dtype.format().is_some();
    let known = inputs.iter().chain([&output]).all(|&dtype| codec::is_known(dtype));
    // The operand that holds ids, masks or the step is U32, the others are floats.
    let words_at = |words: &[usize]| {
        inputs.iter().enumerate().all(|(at, dtype)| words.contains(&at) != float(dtype))
    };
    let fits = match op {
        Op::Slot(_) => true,
        op if op.is_movement() => inputs.iter().all(|dtype| *dtype == output),
        _ if !float(&output) => false,
        Op::Map { expr, .. } | Op::Reduce { expr, .. } => expression::is_known(expr),
        Op::Gather | Op::ScatterAdd { .. } => words_at(&[1]),
        Op::CrossEntropy { .. } => words_at(&[1, 2]),
        Op::CrossEntropyGrad { .. } => words_at(&[1, 3]),
        Op::Attention { .. } => words_at(&[3]),
        Op::AttentionGrad { .. } => words_at(&[6]),
        Op::AdamW(_) => words_at(&[5]),
        _ => inputs.iter().all(float),
    };
    if known && fits { Support::Native } else { Support::No }
}
