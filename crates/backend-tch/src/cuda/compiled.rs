//! A program made ready for a device, without one: the instructions of every entry, and where
//! slots, copies and temporary tensors lie.

use std::collections::HashMap;
use std::fmt;

use onesigma_backend::{Result, inputs_read};
use onesigma_graph::{Program, Role, SlotId, SlotKind};

use super::assemble::{Instruction, assemble};
use super::batch::batch;
use super::derived::{Derived, derive};
use super::epilogue::absorb;
use super::fuse::fuse;
use super::ir::{Entry as Lowered, Home, TensorId};
use super::lower::{Abilities, lower};
use super::plan::{Plan, aligned, plan};
use super::recompute::recompute;
use super::schedule::hoist_updates;

/// Bytes that products may use as work space.
pub(crate) const WORKSPACE_BYTES: usize = 32 << 20;

/// An entry without a device.
#[derive(Clone)]
pub(crate) struct CompiledEntry {
    pub name: String,
    pub lowered: Lowered,
    pub instructions: Vec<Instruction>,
    pub plan: Plan,
    /// Slots of kind input that it reads.
    pub inputs: Vec<usize>,
    /// Slots of kind output that it writes.
    pub outputs: Vec<usize>,
    /// Copies of state that it reads.
    pub copies_read: Vec<usize>,
}

/// A program without a device.
pub(crate) struct Compiled {
    /// Those of the program, then those that refresh copies.
    pub entries: Vec<CompiledEntry>,
    /// Number of the program's entries.
    pub entry_count: usize,
    pub copies: Vec<Derived>,
    /// Entry that refreshes the copies of a slot.
    pub refreshing: HashMap<usize, usize>,
    /// Place of each slot, then of each copy.
    pub offsets: Vec<usize>,
    memory: CudaMemory,
}

/// What a program takes of a GPU's memory, in bytes; known before it runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct CudaMemory {
    /// State, inputs and outputs.
    pub slots: usize,
    /// Of those, the moments of the optimiser.
    pub moments: usize,
    /// Copies of weights in the formats of products.
    pub copies: usize,
    /// Everything temporary: saved activations, gradients, work spaces of kernels.
    pub temporaries: usize,
    /// What attention's library holds at most, and the work space of products.
    pub library: usize,
    /// Temporary tensors that are computed again instead of kept.
    pub recomputed: usize,
}

impl CudaMemory {
    /// The one allocation for slots, copies and temporary tensors.
    pub fn arena(&self) -> usize {
        self.slots + self.copies + self.temporaries
    }

    /// All of it.
    pub fn total(&self) -> usize {
        self.arena() + self.library
    }
}

impl fmt::Display for CudaMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = |bytes: usize| bytes as f64 / f64::from(1 << 30);
        write!(
            f,
            "memory: {:.3} GiB = state {:.3} (moments {:.3}), copies of weights {:.3}, temporary \
             {:.3}, libraries {:.3}; {} tensors recomputed",
            gib(self.total()),
            gib(self.slots),
            gib(self.moments),
            gib(self.copies),
            gib(self.temporaries),
            gib(self.library),
            self.recomputed
        )
    }
}

impl Compiled {
    /// What it takes.
    pub(crate) fn memory(&self) -> CudaMemory {
        self.memory
    }
}

/// Compiles every entry. If `room` bytes are too few, tensors are computed again instead of kept,
/// until the program fits or nothing is left to compute again.
///
/// # Errors
/// Those of lowering.
pub(crate) fn compile(
    program: &Program,
    abilities: &dyn Abilities,
    room: Option<u64>,
) -> Result<Compiled> {
    let mut lowered = Vec::new();
    for entry in program.entries() {
        lowered.push(lower(&entry.graph, abilities)?);
    }
    let first_copy = program.slots().len();
    let (copies, refreshers) = derive(&mut lowered, first_copy);
    let mut refreshing = HashMap::new();
    for (source, entry) in refreshers {
        refreshing.insert(source, lowered.len());
        lowered.push(entry);
    }
    let mut at = 0;
    let mut offsets = Vec::new();
    let mut place = |bytes: usize| {
        offsets.push(at);
        at += aligned(bytes);
        aligned(bytes)
    };
    let mut memory = CudaMemory { library: WORKSPACE_BYTES, ..CudaMemory::default() };
    for slot in program.slots() {
        let bytes = place(slot.bytes());
        memory.slots += bytes;
        if matches!(slot.role, Role::FirstMoment | Role::SecondMoment) {
            memory.moments += bytes;
        }
    }
    for copy in &copies {
        memory.copies += place(copy.bytes());
    }
    let fixed = memory.total();
    let room = room.map(|room| usize::try_from(room).unwrap_or(usize::MAX).saturating_sub(fixed));
    let mut entries = Vec::new();
    for (at, lowered) in lowered.into_iter().enumerate() {
        let own = program.entries().get(at);
        let name = own.map_or_else(|| "refresh".to_owned(), |entry| entry.name.clone());
        let schedule = |lowered: &Lowered, batches: bool| {
            let offsets = batches.then_some(&offsets[..]);
            scheduled(&name, lowered.clone(), abilities, offsets)
        };
        let (entry, recomputed) = fitted(&schedule, lowered, room);
        memory.temporaries = memory.temporaries.max(entry.plan.bytes);
        memory.library = memory.library.max(WORKSPACE_BYTES + entry.plan.library_bytes);
        memory.recomputed += recomputed;
        let slots = |slot: usize| program.slots().get(slot).map(|slot| slot.kind);
        entries.push(connected(entry, own.map(|own| inputs_read(program, own)), slots, first_copy));
    }
    let entry_count = program.entries().len();
    Ok(Compiled { entries, entry_count, copies, refreshing, offsets, memory })
}

/// The instructions of an entry whose temporary tensors and libraries fit `room`, if that can be
/// had; with the number of tensors that are computed again for it.
fn fitted(
    schedule: &dyn Fn(&Lowered, bool) -> CompiledEntry,
    mut lowered: Lowered,
    room: Option<usize>,
) -> (CompiledEntry, usize) {
    let bytes = |entry: &CompiledEntry| entry.plan.bytes + entry.plan.library_bytes;
    let mut best = (schedule(&lowered, true), 0);
    let Some(room) = room else { return best };
    let mut count = 0;
    let mut entry = best.0.clone();
    while bytes(&entry) > room {
        let excess = bytes(&entry) - room;
        let more = recompute(&mut lowered, &entry.lowered, &entry.instructions, excess);
        if more == 0 {
            break;
        }
        count += more;
        entry = schedule(&lowered, true);
        if bytes(&entry) > room {
            // What a batch keeps in a row lives as long as any of it.
            let apart = schedule(&lowered, false);
            entry = if bytes(&apart) < bytes(&entry) { apart } else { entry };
        }
        if bytes(&entry) < bytes(&best.0) {
            best = (entry.clone(), count);
        }
    }
    best
}

/// With `offsets` of the slots, alike products are batches.
fn scheduled(
    name: &str,
    mut lowered: Lowered,
    abilities: &dyn Abilities,
    offsets: Option<&[usize]>,
) -> CompiledEntry {
    absorb(&mut lowered, abilities);
    let tasks = fuse(&lowered);
    let mut instructions = assemble(&mut lowered, &tasks);
    if let Some(offsets) = offsets {
        batch(&mut lowered, &mut instructions, offsets);
    }
    hoist_updates(&lowered, &mut instructions);
    let plan = plan(&mut lowered, &mut instructions);
    let (inputs, outputs, copies_read) = (Vec::new(), Vec::new(), Vec::new());
    CompiledEntry {
        name: name.to_owned(),
        lowered,
        instructions,
        plan,
        inputs,
        outputs,
        copies_read,
    }
}

/// Notes which slots and copies an entry needs.
fn connected(
    mut entry: CompiledEntry,
    reads: Option<Vec<SlotId>>,
    kind: impl Fn(usize) -> Option<SlotKind>,
    first_copy: usize,
) -> CompiledEntry {
    let reads = reads.unwrap_or_default().into_iter().map(SlotId::index);
    entry.inputs = reads.filter(|&slot| kind(slot) == Some(SlotKind::Input)).collect();
    let writes = entry.lowered.writes.iter().map(|&(slot, _)| slot);
    entry.outputs = writes.filter(|&slot| kind(slot) == Some(SlotKind::Output)).collect();
    let copies = |instruction: &Instruction| -> Vec<usize> {
        let slot = |&tensor: &TensorId| match entry.lowered.tensors[tensor].home {
            Home::Slot(slot) => slot.checked_sub(first_copy),
            _ => None,
        };
        instruction.reads.iter().filter_map(slot).collect()
    };
    let mut copies_read: Vec<usize> = entry.instructions.iter().flat_map(copies).collect();
    copies_read.sort_unstable();
    copies_read.dedup();
    entry.copies_read = copies_read;
    entry
}
