//! A backend that compiles whole programs, to start from: one arena, `Map` in F32 computed here,
//! everything else on the host.
//!
//! Replace the arena by the device's memory and [`Kernel`] by what the device runs, op by op and type
//! by type; the suite in `tests/conformance.rs` checks every step.

use onesigma_backend::kernels::{codes_on_host, expect_supported};
use onesigma_backend::lowering::Rounded;
use onesigma_backend::{
    Backend, Call, Caps, Engine, HostSlot, Report, Result, Support, find_entry, find_slot,
    find_slot_mut, inputs_read,
};
use onesigma_graph::{
    DType, EntryId, Node, Op, Place, Program, ProgramEntry, SlotId, SlotKind, Value, decompose,
};

/// The backend. A device that is not there is `Error::Unavailable` here.
pub fn backend() -> Result<Template> {
    Ok(Template)
}

/// The backend.
pub struct Template;

fn is_f32(op: &Op, inputs: &[DType], output: DType) -> bool {
    let mut dtypes = inputs.iter().chain([&output]);
    matches!(op, Op::Map { .. }) && dtypes.all(|&dtype| dtype == DType::F32)
}

impl Backend for Template {
    fn name(&self) -> &str {
        "template"
    }

    fn caps(&self) -> Caps {
        Caps { device: "host memory".to_owned(), memory_bytes: None, deterministic: true }
    }

    fn supports(&self, op: &Op, inputs: &[DType], output: DType) -> Support {
        match is_f32(op, inputs, output) {
            true => Support::Native,
            false => Support::Emulated, // on the host; fused ops as their decomposition
        }
    }

    fn compile(&self, program: &Program) -> Result<Box<dyn Engine>> {
        program.validate()?;
        let supports = |op: &Op, inputs: &[DType], output: DType| self.supports(op, inputs, output);
        let slots: Vec<Slot> = (0..program.slots().len())
            .map(SlotId::new)
            .map(|id| Slot {
                host: HostSlot::new(&program.slots()[id.index()]),
                place: program.slot_place(id),
            })
            .collect();
        let slots_end = slots.iter().map(|slot| slot.place.offset + slot.place.bytes).max();
        let mut entries = Vec::new();
        let mut end = 0;
        for entry in program.entries() {
            expect_supported(self.name(), &entry.graph, &supports)?;
            let (steps, steps_end) = Steps::new(program, entry, slots_end.unwrap_or(0))?;
            end = end.max(steps_end);
            entries.push(steps);
        }
        let memory = Memory { arena: vec![0; end] }; // state starts as zeros
        let [seed, step] = [program.seed(), program.step()].map(|slot| slot.map(SlotId::index));
        let planned = program.arena_bytes();
        Ok(Box::new(TemplateEngine { memory, slots, entries, seed, step, planned }))
    }
}

/// A node, lowered: a step does not look at the graph.
struct Kernel {
    node: Node,
    inputs: Vec<(Value, Place)>,
    outputs: Vec<(Value, Place)>,
    result: Rounded,
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
    /// Values lie one behind the other from `end` on, of which the end is given, too. `last_uses`
    /// of the pass `memory_plan` says when their memory is free again.
    fn new(program: &Program, entry: &ProgramEntry, mut end: usize) -> Result<(Self, usize)> {
        let graph = decompose(&entry.graph, |node| node.op.is_fused())?;
        let mut places: Vec<Place> = Vec::new();
        let mut kernels = Vec::new();
        for node in graph.nodes() {
            for &id in &node.outputs {
                let bytes = graph.value(id).bytes();
                places.resize(id.index() + 1, Place { offset: end, bytes });
                end += bytes;
            }
            if let Op::Slot(slot) = node.op {
                places[node.outputs[0].index()] = program.slot_place(slot);
                continue;
            }
            let operands = |ids: &[onesigma_graph::ValueId]| {
                ids.iter().map(|&id| (graph.value(id).clone(), places[id.index()])).collect()
            };
            kernels.push(Kernel {
                inputs: operands(&node.inputs),
                outputs: operands(&node.outputs),
                result: Rounded::of(&graph, node, 0),
                node: node.clone(),
            });
        }
        let writes = graph.writes().iter().map(|&(slot, id)| (slot.index(), places[id.index()]));
        let inputs = inputs_read(program, entry).into_iter().map(SlotId::index);
        let is_input = |slot: &usize| program.slots()[*slot].kind == SlotKind::Input;
        let inputs = inputs.filter(is_input).collect();
        Ok((Self { kernels, writes: writes.collect(), inputs }, end))
    }
}

/// The device's memory.
struct Memory {
    arena: Vec<u8>,
}

impl Memory {
    fn at(&mut self, place: Place) -> &mut [u8] {
        &mut self.arena[place.offset..][..place.bytes]
    }

    fn codes(&self, place: Place) -> &[u8] {
        &self.arena[place.offset..][..place.bytes]
    }

    fn run(&mut self, kernel: &Kernel, seed: [u32; 2], step: u32) -> Result<()> {
        let Kernel { node, inputs, outputs, result } = kernel;
        let dtypes: Vec<DType> = inputs.iter().map(|(value, _)| value.dtype).collect();
        let results = if is_f32(&node.op, &dtypes, result.dtype) {
            vec![self.map(kernel)]
        } else {
            let codes: Vec<&[u8]> = inputs.iter().map(|&(_, place)| self.codes(place)).collect();
            let inputs: Vec<&Value> = inputs.iter().map(|(value, _)| value).collect();
            let outputs: Vec<&Value> = outputs.iter().map(|(value, _)| value).collect();
            let call = Call { node, inputs: &inputs, outputs: &outputs, seed, step };
            codes_on_host(&call, &codes)?
        };
        for ((_, place), codes) in outputs.iter().zip(results) {
            self.at(*place).copy_from_slice(&codes);
        }
        Ok(())
    }

    /// A map in F32; its result is scaled, and nothing is left to be rounded.
    fn map(&self, kernel: &Kernel) -> Vec<u8> {
        let Kernel { node, inputs, result, .. } = kernel;
        let Op::Map { expr, shape } = &node.op else { return Vec::new() };
        let own = shape.strides();
        let operand = |(value, place): &(Value, Place), index: &[usize]| {
            let strides = value.shape.broadcast_strides(shape);
            let at: usize = index.iter().zip(strides).map(|(i, s)| i * s).sum();
            f64::from(f32::from_le_bytes(self.codes(*place).as_chunks().0[at]))
        };
        let mut codes = Vec::new();
        for flat in 0..shape.numel() {
            let index: Vec<usize> =
                own.iter().zip(shape.dims()).map(|(s, d)| flat / s % d).collect();
            let x: Vec<f64> = inputs.iter().map(|input| operand(input, &index)).collect();
            let value = expr.eval(&x, &index) as f32 * result.alpha as f32;
            codes.extend(value.to_le_bytes());
        }
        codes
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
    /// The inputs that random numbers are drawn from.
    seed: Option<usize>,
    step: Option<usize>,
    planned: usize,
}

impl TemplateEngine {
    /// Word `at` of an input, 0 if the program has none.
    fn word(&self, slot: Option<usize>, at: usize) -> u32 {
        slot.map_or(0, |slot| {
            u32::from_le_bytes(self.memory.codes(self.slots[slot].place).as_chunks().0[at])
        })
    }
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
            bytes.copy_from_slice(self.memory.codes(*place));
        }
        Ok(())
    }

    fn run(&mut self, entry: EntryId, times: usize) -> Result<()> {
        let steps = find_entry(&self.entries, entry)?;
        if times == 0 {
            return Ok(());
        }
        // What is refused changes nothing.
        for &slot in &steps.inputs {
            self.slots[slot].host.expect_frames(times)?;
        }
        for (slot, _) in &steps.writes {
            self.slots[*slot].host.frames.clear();
        }
        for step in 0..times {
            for &slot in &steps.inputs {
                let Slot { host, place } = &self.slots[slot];
                let from = host.frame_of(step) * host.frame_bytes;
                self.memory.at(*place).copy_from_slice(&host.frames[from..][..host.frame_bytes]);
            }
            let seed = [self.word(self.seed, 0), self.word(self.seed, 1)];
            let number = self.word(self.step, 0);
            for kernel in &steps.kernels {
                self.memory.run(kernel, seed, number)?;
            }
            // All values are read before any slot is written: two slots may trade places.
            let values: Vec<Vec<u8>> =
                steps.writes.iter().map(|&(_, from)| self.memory.codes(from).to_vec()).collect();
            for (&(slot, _), value) in steps.writes.iter().zip(values) {
                let Slot { host, place } = &mut self.slots[slot];
                self.memory.at(*place).copy_from_slice(&value);
                if host.kind == SlotKind::Output {
                    host.frames.extend(value);
                }
            }
        }
        Ok(())
    }

    fn report(&self) -> Report {
        let allocated_bytes = self.memory.arena.len();
        Report { planned_bytes: self.planned, allocated_bytes, notes: Vec::new() }
    }
}
