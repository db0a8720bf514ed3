//! A backend that compiles whole programs, to start from: one arena, as the program plans it, and
//! two ops in F32.
//!
//! Replace the arena by the device's memory and [`Kernel`] by what the device runs, then claim more
//! ops and types in `supports`; what is not claimed is rewritten or refused before it comes here,
//! and the suite in `tests/conformance.rs` checks what is.

use onesigma_backend::kernels::expect_supported;
use onesigma_backend::lowering::Rounded;
use onesigma_backend::{
    Backend, Caps, Engine, HostSlot, Report, Result, Support, find_entry, find_slot, find_slot_mut,
    inputs_read, noise,
};
use onesigma_format::philox;
use onesigma_graph::expr::Expr;
use onesigma_graph::{
    DType, Distribution, EntryId, Node, Op, Place, Program, ProgramEntry, Shape, SlotId, SlotKind,
};

/// The backend. A device that is not there is `Error::Unavailable` here.
pub fn backend() -> Result<Template> {
    Ok(Template)
}

/// The backend.
pub struct Template;

impl Backend for Template {
    fn name(&self) -> &str {
        "template"
    }

    fn caps(&self) -> Caps {
        Caps { device: "host memory".to_owned(), memory_bytes: None, deterministic: true }
    }

    fn supports(&self, op: &Op, inputs: &[DType], output: DType) -> Support {
        let is_f32 = inputs.iter().chain([&output]).all(|&dtype| dtype == DType::F32);
        match op {
            Op::Map { .. } if is_f32 => Support::Native,
            Op::Random { distribution: Distribution::Normal { .. }, .. } if is_f32 => {
                Support::Native
            }
            _ => Support::No,
        }
    }

    fn compile(&self, program: &Program) -> Result<Box<dyn Engine>> {
        program.validate()?;
        let supports = |op: &Op, inputs: &[DType], output: DType| self.supports(op, inputs, output);
        let mut entries = Vec::new();
        for entry in program.entries() {
            expect_supported(self.name(), &entry.graph, &supports)?;
            entries.push(Steps::new(program, entry));
        }
        let slot = |(at, slot)| Slot {
            host: HostSlot::new(slot),
            place: program.slot_place(SlotId::new(at)),
        };
        let slots: Vec<Slot> = program.slots().iter().enumerate().map(slot).collect();
        let key = |slot: Option<SlotId>| slot.map(|slot| slots[slot.index()].place);
        let (seed, step) = (key(program.seed()), key(program.step()));
        // State starts as zeros.
        let memory = Memory { arena: vec![0; program.arena_bytes()], seed, step };
        Ok(Box::new(TemplateEngine { memory, slots, entries }))
    }
}

/// A node, lowered: a step does not look at the graph.
struct Kernel {
    work: Work,
    operands: Vec<(Place, Shape)>,
    result: Rounded,
    out: Place,
}

enum Work {
    Map(Expr, Shape),
    Normal { mean: f32, std: f32 },
}

impl Kernel {
    /// `None` for a node without work: a slot that is read has its place.
    fn new(entry: &ProgramEntry, node: &Node) -> Option<Self> {
        let work = match &node.op {
            Op::Map { expr, shape } => Work::Map(expr.clone(), shape.clone()),
            Op::Random { distribution: Distribution::Normal { mean, std }, .. } => {
                Work::Normal { mean: *mean as f32, std: *std as f32 }
            }
            _ => return None,
        };
        let operands = node.inputs.iter();
        let operands =
            operands.map(|&id| (entry.places[id.index()], entry.graph.shape(id).clone()));
        Some(Self {
            work,
            operands: operands.collect(),
            result: Rounded::of(&entry.graph, node, 0),
            out: entry.places[node.outputs[0].index()],
        })
    }
}

/// An entry, lowered.
struct Steps {
    kernels: Vec<Kernel>,
    /// Slots that are written at the end of a step, and the values that they take.
    writes: Vec<(usize, Place)>,
    /// Inputs whose frames a run needs.
    inputs: Vec<usize>,
}

impl Steps {
    fn new(program: &Program, entry: &ProgramEntry) -> Self {
        let is_input = |slot: &usize| program.slots()[*slot].kind == SlotKind::Input;
        let writes = entry.graph.writes().iter();
        Self {
            kernels: entry.graph.nodes().iter().filter_map(|n| Kernel::new(entry, n)).collect(),
            writes: writes.map(|&(slot, id)| (slot.index(), entry.places[id.index()])).collect(),
            inputs: inputs_read(program, entry)
                .into_iter()
                .map(SlotId::index)
                .filter(is_input)
                .collect(),
        }
    }
}

/// The device's memory.
struct Memory {
    arena: Vec<u8>,
    /// Where the inputs lie that random numbers are drawn from.
    seed: Option<Place>,
    step: Option<Place>,
}

impl Memory {
    fn at(&mut self, place: Place) -> &mut [u8] {
        &mut self.arena[place.offset..][..place.bytes]
    }

    fn word(&self, place: Place, at: usize) -> [u8; 4] {
        [0, 1, 2, 3].map(|byte| self.arena[place.offset + 4 * at + byte])
    }

    fn key(&self, place: Option<Place>, at: usize) -> u32 {
        place.map_or(0, |place| u32::from_le_bytes(self.word(place, at)))
    }

    fn run(&mut self, kernel: &Kernel) {
        let Kernel { work, operands, result, out } = kernel;
        let mut values = vec![0.0_f32; out.bytes / 4];
        match work {
            Work::Map(expr, shape) => {
                let own = shape.strides();
                for (flat, value) in values.iter_mut().enumerate() {
                    let index: Vec<usize> =
                        own.iter().zip(shape.dims()).map(|(s, d)| flat / s % d).collect();
                    let operand = |(place, from): &(Place, Shape)| {
                        let strides = from.broadcast_strides(shape);
                        let at = index.iter().zip(strides).map(|(i, s)| i * s).sum();
                        f64::from(f32::from_le_bytes(self.word(*place, at)))
                    };
                    let x: Vec<f64> = operands.iter().map(operand).collect();
                    *value = expr.eval(&x, &index) as f32;
                }
            }
            Work::Normal { mean, std } => {
                let seed = [self.key(self.seed, 0), self.key(self.seed, 1)];
                let key = noise(seed, self.key(self.step, 0), result.stream);
                philox::fill_normal(key, &mut values);
                values.iter_mut().for_each(|value| *value = mean + std * *value);
            }
        }
        // Scaled, and rounded into the result's type, which is F32 here.
        let alpha = result.alpha as f32;
        for (word, value) in self.at(*out).as_chunks_mut().0.iter_mut().zip(values) {
            *word = (alpha * value).to_le_bytes();
        }
    }
}

struct Slot {
    host: HostSlot,
    place: Place,
}

struct TemplateEngine {
    memory: Memory,
    slots: Vec<Slot>,
    entries: Vec<Steps>,
}

impl Engine for TemplateEngine {
    fn write(&mut self, slot: SlotId, bytes: &[u8]) -> Result<()> {
        let Slot { host, place } = find_slot_mut(&mut self.slots, slot)?;
        if !host.write(bytes)? {
            self.memory.at(*place).copy_from_slice(bytes);
        }
        Ok(())
    }

    fn read(&mut self, slot: SlotId, bytes: &mut [u8]) -> Result<()> {
        let Slot { host, place } = find_slot(&self.slots, slot)?;
        if !host.read(bytes)? {
            bytes.copy_from_slice(self.memory.at(*place));
        }
        Ok(())
    }

    fn run(&mut self, entry: EntryId, times: usize) -> Result<()> {
        let Self { memory, slots, entries } = self;
        let steps = find_entry(entries, entry)?;
        if times == 0 {
            return Ok(());
        }
        // What is refused changes nothing.
        for &slot in &steps.inputs {
            slots[slot].host.expect_frames(times)?;
        }
        for (slot, _) in &steps.writes {
            slots[*slot].host.frames.clear();
        }
        for step in 0..times {
            for &slot in &steps.inputs {
                let Slot { host, place } = &slots[slot];
                let from = host.frame_of(step) * host.frame_bytes;
                memory.at(*place).copy_from_slice(&host.frames[from..][..host.frame_bytes]);
            }
            for kernel in &steps.kernels {
                memory.run(kernel);
            }
            // All values are read before any slot is written: two slots may trade places.
            let values: Vec<Vec<u8>> =
                steps.writes.iter().map(|&(_, from)| memory.at(from).to_vec()).collect();
            for (&(slot, _), value) in steps.writes.iter().zip(values) {
                let Slot { host, place } = &mut slots[slot];
                memory.at(*place).copy_from_slice(&value);
                if host.kind == SlotKind::Output {
                    host.frames.extend(value);
                }
            }
        }
        Ok(())
    }

    fn report(&self) -> Report {
        let bytes = self.memory.arena.len();
        Report { planned_bytes: bytes, allocated_bytes: bytes, notes: Vec::new() }
    }
}
