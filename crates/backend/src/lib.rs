//! The contract between programs and the devices that run them.
//!
//! A [`Backend`] compiles a whole [`Program`] into an [`Engine`]; the engine owns the program's
//! state and runs its entries. There is no public buffer type: the host writes and reads named
//! slots. Programs arrive validated, scheduled and memory planned, and a backend never reorders.
//!
//! Numeric contract, the same on every backend: products exact, accumulation in f32 or better,
//! element-wise work in f32, each result times its `alpha` rounded once into its declared format
//! by its declared conversion. A backend that does less says so in [`Caps`].
#![forbid(unsafe_code)]

mod error;
pub mod executor;
mod frames;
pub mod kernels;
pub mod lowering;
pub mod null;
pub mod profile;
pub mod reference;
mod slots;

pub use error::{Error, Result};
pub use executor::{Executor, OpByOp};
pub use frames::{expect_frames, expect_readable, expect_writable};
pub use kernels::{Call, Kernels};
pub use null::{Cost, Device, NullBackend, OpCost};
pub use onesigma_graph::passes::legalise::Support;
pub use reference::RefBackend;
pub use slots::{HostSlot, find_entry, find_slot, find_slot_mut};

use onesigma_format::Noise;
use onesigma_graph::{DType, EntryId, Op, Program, ProgramEntry, SlotId};

/// What a device is and can hold.
#[derive(Clone, PartialEq, Debug)]
pub struct Caps {
    /// The device, in words: `AMD EPYC, 2 threads, AVX-512`.
    pub device: String,
    /// Bytes that programs can use, if known.
    pub memory_bytes: Option<u64>,
    /// Equal programs, inputs and seeds give equal bits, run after run.
    pub deterministic: bool,
}

/// What an engine says about itself.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Report {
    /// Bytes that the program's plan asks for.
    pub planned_bytes: usize,
    /// Bytes that the engine allocated for tensors and scratch.
    pub allocated_bytes: usize,
    /// Remarks on what was done differently from the plan, for people.
    pub notes: Vec<String>,
}

/// The time that one node of a run took.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// The entry that ran.
    pub entry: EntryId,
    /// Index of the node in the entry's graph.
    pub node: usize,
    /// When it began, from the first span on.
    pub start: std::time::Duration,
    /// How long it took.
    pub elapsed: std::time::Duration,
}

/// A kind of device that can run programs.
///
/// ```
/// use onesigma_backend::{Backend, RefBackend, Support};
/// use onesigma_format::Format;
/// use onesigma_graph::{DType, Op};
///
/// // Chosen at run time: nothing else of a program knows which backend it is.
/// let backends: Vec<Box<dyn Backend>> = vec![Box::new(RefBackend::rounding())];
/// let cast = Op::Cast { to: DType::Float(Format::E4M3) };
/// for backend in &backends {
///     let support = backend.supports(&cast, &[DType::F32], DType::Float(Format::E4M3));
///     assert!(matches!(support, Support::Native), "{}", backend.name());
/// }
/// ```
pub trait Backend {
    /// Short name: `cpu`.
    fn name(&self) -> &str;

    /// What the device is and can hold.
    fn caps(&self) -> Caps;

    /// Whether an op runs with operands of types `inputs` and results of type `output`.
    fn supports(&self, op: &Op, inputs: &[DType], output: DType) -> Support;

    /// Whether f32 arithmetic takes subnormal operands for 0, as shading languages allow devices to.
    /// The conformance suite then also accepts what follows from that.
    fn flushes_subnormals(&self) -> bool {
        false
    }

    /// What the device can do at most, measured now in a fraction of a second: the limit that
    /// profiles compare with. `None` where nothing measures it.
    fn limits(&self) -> Option<Device> {
        None
    }

    /// Makes an engine for a program. State slots start as zeros.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an op that [`supports`](Self::supports) denies,
    /// [`Error::OutOfMemory`], [`Error::Device`].
    fn compile(&self, program: &Program) -> Result<Box<dyn Engine>>;
}

/// A compiled program with its state.
///
/// ```
/// use onesigma_backend::{Backend, RefBackend};
/// # use onesigma_graph::{DType, Graph, Module, Program, Role, SlotKind};
/// #
/// # let mut module = Module::new();
/// # let count = module.slot("count", SlotKind::State, [], DType::F32, Role::Statistic)?;
/// # let mut graph = Graph::new();
/// # let old = module.read(&mut graph, count);
/// # let new = graph.map(&[old], |x| x[0].clone() + 1.0)?.one()?;
/// # graph.write(count, new);
/// # let step = module.entry("step", graph)?;
/// # let program = Program::new(module)?;
///
/// // `step` adds one to the state `count`, see `Program`.
/// let mut engine = RefBackend::rounding().compile(&program)?;
/// engine.write(count, &40_f32.to_le_bytes())?;
/// engine.run(step, 2)?;
/// let mut found = [0; 4];
/// engine.read(count, &mut found)?;
/// assert_eq!(f32::from_le_bytes(found), 42.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Engine {
    /// Writes a slot from little-endian bytes. A state slot takes one frame. An input takes `n`
    /// frames: one serves every step of a run, otherwise there must be one for each step.
    ///
    /// # Errors
    /// [`Error::WrongSize`] if `bytes` is no whole number of frames, or not one frame of a state;
    /// [`Error::NotWritable`] for an output; [`Error::UnknownSlot`].
    fn write(&mut self, slot: SlotId, bytes: &[u8]) -> Result<()>;

    /// Reads a slot: the frame of a state, or the last `bytes.len() / frame` frames of an input as
    /// written, or of an output, one for each step of the last run that wrote it, oldest first. An
    /// output that no run has written is one frame of zeros.
    ///
    /// # Errors
    /// [`Error::WrongSize`] for no whole number of frames or more frames than there are;
    /// [`Error::MissingFrames`] for an input that was never written; [`Error::UnknownSlot`].
    fn read(&mut self, slot: SlotId, bytes: &mut [u8]) -> Result<()>;

    /// Runs an entry `times` times. Step `i` uses frame `i` of the inputs that have several.
    /// Running `k` times equals `k` runs, bit for bit; 0 times does nothing. An entry that draws
    /// random numbers reads the program's `seed` and `step` inputs, if there are any; see
    /// [`inputs_read`].
    ///
    /// # Errors
    /// [`Error::MissingFrames`] if an input that the entry reads has neither one frame nor
    /// `times`; [`Error::UnknownEntry`]; [`Error::Device`]. State is unchanged by a refused run.
    fn run(&mut self, entry: EntryId, times: usize) -> Result<()>;

    /// Memory planned and used, and remarks.
    fn report(&self) -> Report;

    /// Begins to record the time of every node; `false` if this engine cannot. Recording costs a
    /// little time and memory.
    fn record(&mut self) -> bool {
        false
    }

    /// The spans recorded since [`record`](Self::record), which ends.
    fn take_spans(&mut self) -> Vec<Span> {
        Vec::new()
    }
}

/// The key of the random numbers that a result draws in one step, from the program's `seed` and
/// `step` inputs and the result's stream, [`Node::stream_of`](onesigma_graph::Node::stream_of).
pub fn noise(seed: [u32; 2], step: u32, stream: u32) -> Noise {
    let seed = u64::from(seed[0]) | u64::from(seed[1]) << 32;
    Noise { seed, tensor: stream, step, offset: 0 }
}

/// Whether a node draws random numbers: it is [`Op::Random`], or rounds a result stochastically.
pub fn draws(graph: &onesigma_graph::Graph, node: &onesigma_graph::Node) -> bool {
    let random_bits = |&output| graph.value(output).conversion.random_bits();
    matches!(node.op, Op::Random { .. })
        || node.outputs.iter().map(random_bits).any(|bits| bits > 0)
}

/// The slots that an entry reads when it runs: those of its [`Op::Slot`] nodes and, if it draws
/// random numbers, the program's `seed` and `step`.
pub fn inputs_read(program: &Program, entry: &ProgramEntry) -> Vec<SlotId> {
    let mut slots = onesigma_graph::passes::clean::slots_read(&entry.graph);
    if entry.graph.nodes().iter().any(|node| draws(&entry.graph, node)) {
        for slot in [program.seed(), program.step()].into_iter().flatten() {
            if !slots.contains(&slot) {
                slots.push(slot);
            }
        }
    }
    slots
}
