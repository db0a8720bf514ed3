//! A compiled program with its memory: writes and reads slots, runs entries.

use std::sync::Arc;
use std::time::Instant;

use onesigma_backend::{
    Engine, Error, HostSlot, Report, Result, Span, find_entry, find_slot, find_slot_mut,
};
use onesigma_graph::{EntryId, Op, Place, Program, SlotId, SlotKind};

use crate::arena::Arena;
use crate::backend::NAME;
use crate::execute::{StepKey, execute, execute_pass};
use crate::instruction::{Instruction, compile};
use crate::parallel::level_scratch;
use crate::profile::Recorder;
use crate::schedule::{Work, schedule};
use crate::team::Team;

struct Slot {
    host: HostSlot,
    place: Place,
}

/// A value that a slot takes at the end of a step.
struct Write {
    slot: usize,
    from: Place,
    to: Place,
}

struct Entry {
    instructions: Vec<Instruction>,
    /// The order in which they run, and which run together.
    work: Vec<Work>,
    writes: Vec<Write>,
    /// Some write takes what another write replaces: all are read before any is written.
    staged: bool,
    /// Input slots whose frames a run needs.
    inputs: Vec<usize>,
}

/// The engine of [`CpuBackend`](crate::CpuBackend).
pub(crate) struct CpuEngine {
    arena: Arena,
    slots: Vec<Slot>,
    entries: Vec<Entry>,
    seed: Option<usize>,
    step: Option<usize>,
    team: Arc<Team>,
    staging: Vec<u8>,
    planned_bytes: usize,
    recorder: Option<Recorder>,
}

impl CpuEngine {
    pub(crate) fn new(program: &Program, team: Arc<Team>, available: Option<u64>) -> Result<Self> {
        program.validate()?;
        let needed = program.arena_bytes() as u64;
        let out_of_memory =
            || Error::OutOfMemory { needed, available: available.unwrap_or_default() };
        if available.is_some_and(|available| needed > available) {
            return Err(out_of_memory());
        }
        let seed = program.seed().map(SlotId::index);
        let step = program.step().map(SlotId::index);
        let entries = program
            .entries()
            .iter()
            .map(|entry| {
                let mut instructions = Vec::new();
                let mut inputs = Vec::new();
                let is_input = |slot: &usize| program.slots()[*slot].kind == SlotKind::Input;
                for node in entry.graph.nodes() {
                    if let Op::Slot(slot) = node.op {
                        inputs.extend(Some(slot.index()).filter(is_input));
                    }
                    instructions.extend(compile(entry, node)?);
                }
                if instructions.iter().any(Instruction::draws) {
                    inputs.extend([seed, step].into_iter().flatten());
                }
                inputs.sort_unstable();
                inputs.dedup();
                let writes: Vec<Write> = entry
                    .graph
                    .writes()
                    .iter()
                    .map(|&(slot, value)| Write {
                        slot: slot.index(),
                        from: entry.places[value.index()],
                        to: program.slot_place(slot),
                    })
                    .collect();
                let staged = writes.iter().enumerate().any(|(i, a)| {
                    writes.iter().enumerate().any(|(j, b)| i != j && a.from.overlaps(b.to))
                });
                let work = schedule(&instructions);
                Ok(Entry { instructions, work, writes, staged, inputs })
            })
            .collect::<Result<Vec<_>>>()?;
        let slots = program
            .slots()
            .iter()
            .enumerate()
            .map(|(at, slot)| Slot {
                host: HostSlot::new(slot),
                place: program.slot_place(SlotId::new(at)),
            })
            .collect();
        let arena = Arena::new(program.arena_bytes()).ok_or_else(out_of_memory)?;
        Ok(Self {
            arena,
            slots,
            entries,
            seed,
            step,
            team,
            staging: Vec::new(),
            planned_bytes: program.arena_bytes(),
            recorder: None,
        })
    }

    /// Copies frame `step` of each input that has several into the arena, or the one there is.
    fn take_inputs(&mut self, entry: usize, step: usize) {
        for &at in &self.entries[entry].inputs {
            let slot = &self.slots[at];
            let (bytes, frame) = (slot.place.bytes, slot.host.frame_of(step));
            if step == 0 || frame > 0 {
                let frame = &slot.host.frames[frame * bytes..(frame + 1) * bytes];
                self.arena.at(slot.place).copy_from_slice(frame);
            }
        }
    }

    fn words<const N: usize>(&mut self, slot: Option<usize>) -> [u32; N] {
        let mut words = [0; N];
        if let Some(at) = slot {
            let place = self.slots[at].place;
            let bytes = self.arena.at(place).as_chunks::<4>().0;
            for (word, bytes) in words.iter_mut().zip(bytes) {
                *word = u32::from_le_bytes(*bytes);
            }
        }
        words
    }

    fn step(&mut self, entry: usize) -> Result<()> {
        let [step] = self.words(self.step);
        let key = StepKey { seed: self.words(self.seed), step };
        let memory = self.arena.memory();
        let Entry { instructions, work, .. } = &self.entries[entry];
        let failed = |(at, error): (usize, crate::Error)| Error::Device {
            backend: NAME.to_owned(),
            reason: format!("{}: {error}", instructions[at].label),
        };
        // SAFETY: for all calls, the arena belongs to `self`, which is borrowed mutably, and the
        // program was validated when the engine was made.
        let run = |at: usize| unsafe { execute(&instructions[at], memory, key) };
        if let Some(recorder) = &mut self.recorder {
            // One by one, so that each has a time of its own.
            for (at, instruction) in instructions.iter().enumerate() {
                let start = Instant::now();
                run(at).map_err(|error| failed((at, error)))?;
                recorder.add(EntryId::new(entry), instruction.node, start);
            }
        } else {
            for work in work {
                match work {
                    Work::One(at) => run(*at).map_err(|error| (*at, error)),
                    // SAFETY: as above.
                    Work::Rows(pass) => unsafe { execute_pass(pass, instructions, memory, key) },
                }
                .map_err(failed)?;
            }
        }
        self.finish_writes(entry);
        Ok(())
    }

    fn finish_writes(&mut self, entry: usize) {
        let entry = &self.entries[entry];
        if entry.staged {
            self.staging.clear();
            for write in &entry.writes {
                self.staging.extend_from_slice(self.arena.at(write.from));
            }
        }
        let mut staged = 0;
        for write in &entry.writes {
            if entry.staged {
                let bytes = &self.staging[staged..staged + write.to.bytes];
                self.arena.at(write.to).copy_from_slice(bytes);
                staged += write.to.bytes;
            } else if write.from != write.to {
                let memory = self.arena.memory();
                // SAFETY: the arena is borrowed mutably; distinct tensors do not overlap.
                unsafe { memory.write(write.to).copy_from_slice(memory.read(write.from)) };
            }
            let slot = &mut self.slots[write.slot].host;
            if slot.kind == SlotKind::Output {
                slot.frames.extend_from_slice(self.arena.at(write.to));
            }
        }
    }

    fn run_steps(&mut self, entry: usize, times: usize) -> Result<()> {
        let team = self.team.clone();
        for step in 0..times {
            self.take_inputs(entry, step);
            self.step(entry)?;
            level_scratch(&team);
        }
        Ok(())
    }
}

impl Engine for CpuEngine {
    fn write(&mut self, slot: SlotId, bytes: &[u8]) -> Result<()> {
        let slot = find_slot_mut(&mut self.slots, slot)?;
        let place = slot.place;
        if !slot.host.write(bytes)? {
            self.arena.at(place).copy_from_slice(bytes);
        }
        Ok(())
    }

    fn read(&mut self, slot: SlotId, bytes: &mut [u8]) -> Result<()> {
        let slot = find_slot(&self.slots, slot)?;
        let place = slot.place;
        if !slot.host.read(bytes)? {
            bytes.copy_from_slice(self.arena.at(place));
        }
        Ok(())
    }

    fn run(&mut self, entry: EntryId, times: usize) -> Result<()> {
        let index = entry.index();
        let entry = find_entry(&self.entries, entry)?;
        if times == 0 {
            return Ok(());
        }
        for &at in &entry.inputs {
            self.slots[at].host.expect_frames(times)?;
        }
        for write in &entry.writes {
            self.slots[write.slot].host.frames.clear();
        }
        self.team.clone().lead(|| self.run_steps(index, times))
    }

    fn report(&self) -> Report {
        let frames: usize = self.slots.iter().map(|slot| slot.host.frames.capacity()).sum();
        let scratch = crate::parallel::scratch_bytes();
        let mut notes = vec![format!("kernels for {:?}", crate::Isa::current())];
        let passes = |entry: &Entry| {
            entry.work.iter().filter_map(Work::pass).fold((0, 0), |(passes, parts), pass| {
                (passes + 1, parts + pass.parts.len() + usize::from(pass.product.is_some()))
            })
        };
        let all = self.entries.iter().map(passes).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        if all.0 > 0 {
            notes.push(format!("{} passes over rows join {} instructions", all.0, all.1));
        }
        Report {
            planned_bytes: self.planned_bytes,
            allocated_bytes: self.planned_bytes + frames + self.staging.capacity() + scratch,
            notes,
        }
    }

    fn record(&mut self) -> bool {
        self.recorder = Some(Recorder::default());
        true
    }

    fn take_spans(&mut self) -> Vec<Span> {
        self.recorder.take().map(Recorder::into_spans).unwrap_or_default()
    }
}
