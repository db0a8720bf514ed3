//! Modules and programs: entries over shared slots, and their memory.

use crate::{
    DType, EntryId, Error, Graph, Op, Result, Role, Shape, SlotId, Value, ValueId, passes,
};
use serde::{Deserialize, Serialize};

/// Alignment of every tensor in the arena, in bytes: a cache line and an AVX-512 register.
pub const ALIGNMENT: usize = 64;

/// Version of the serialised form of [`Program`].
pub const PROGRAM_VERSION: u32 = 1;

/// Who writes a slot and when.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SlotKind {
    /// Lives in the engine between runs; entries read and replace it. The host may read and
    /// write it.
    State,
    /// Written by the host: one frame that every step of a run uses, or one frame for each step.
    Input,
    /// Written by entries; the host reads the frames of the last run, one for each step.
    Output,
}

/// A named tensor that the host or other entries see.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Slot {
    /// Unique name.
    pub name: String,
    /// Who writes it.
    pub kind: SlotKind,
    /// Extents of one frame.
    pub shape: Shape,
    /// Element type.
    pub dtype: DType,
    /// What it is for.
    pub role: Role,
}

impl Slot {
    /// Bytes of one frame.
    pub fn bytes(&self) -> usize {
        self.shape.numel().saturating_mul(self.dtype.bytes())
    }
}

/// A named graph of a module.
#[derive(Clone, PartialEq, Debug)]
pub struct Entry {
    /// Unique name: `init`, `train_step`, `accumulate`, `apply`, `eval_step`, `generate_step`.
    pub name: String,
    /// What it does.
    pub graph: Graph,
}

/// A program under construction: slots, and entries that passes still may rewrite.
///
/// ```
/// use onesigma_graph::{DType, Graph, Module, Program, Role, SlotKind};
///
/// // A counter: its state goes up by one in each step.
/// let mut module = Module::new();
/// let count = module.slot("count", SlotKind::State, [], DType::F32, Role::Statistic)?;
/// let mut graph = Graph::new();
/// let old = module.read(&mut graph, count);
/// let new = graph.map(&[old], |x| x[0].clone() + 1.0)?.one()?;
/// graph.write(count, new);
/// module.entry("step", graph)?;
///
/// assert_eq!(module.slot_info(count).name, "count");
/// # Ok::<(), onesigma_graph::Error>(())
/// ```
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Module {
    slots: Vec<Slot>,
    entries: Vec<Entry>,
    seed: Option<SlotId>,
    step: Option<SlotId>,
}

impl Module {
    /// An empty module.
    pub fn new() -> Self {
        Self::default()
    }

    /// Declares a slot.
    ///
    /// # Errors
    /// [`Error::DuplicateName`].
    pub fn slot(
        &mut self,
        name: &str,
        kind: SlotKind,
        shape: impl Into<Shape>,
        dtype: DType,
        role: Role,
    ) -> Result<SlotId> {
        if self.slots.iter().any(|slot| slot.name == name) {
            return Err(Error::DuplicateName { what: "slot", name: name.to_owned() });
        }
        self.slots.push(Slot { name: name.to_owned(), kind, shape: shape.into(), dtype, role });
        Ok(SlotId::new(self.slots.len() - 1))
    }

    /// The input `seed U32 [2]` (low word, high word): with `step` it keys every random number.
    ///
    /// # Errors
    /// [`Error::DuplicateName`] if another slot has that name.
    pub fn seed_slot(&mut self) -> Result<SlotId> {
        if let Some(slot) = self.seed {
            return Ok(slot);
        }
        let slot = self.slot("seed", SlotKind::Input, [2], DType::U32, Role::Data)?;
        self.seed = Some(slot);
        Ok(slot)
    }

    /// The input `step U32 []`: the number of steps done before; the optimiser's bias correction
    /// and random numbers depend on it.
    ///
    /// # Errors
    /// [`Error::DuplicateName`] if another slot has that name.
    pub fn step_slot(&mut self) -> Result<SlotId> {
        if let Some(slot) = self.step {
            return Ok(slot);
        }
        let slot = self.slot("step", SlotKind::Input, [], DType::U32, Role::Data)?;
        self.step = Some(slot);
        Ok(slot)
    }

    /// The module that a program was made from.
    pub(crate) fn of(program: &Program) -> Self {
        let entry =
            |entry: &ProgramEntry| Entry { name: entry.name.clone(), graph: entry.graph.clone() };
        Self {
            slots: program.slots.clone(),
            entries: program.entries.iter().map(entry).collect(),
            seed: program.seed,
            step: program.step,
        }
    }

    /// All slots.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The slot with an id of this module.
    pub fn slot_info(&self, id: SlotId) -> &Slot {
        &self.slots[id.index()]
    }

    /// All entries.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Rewrites every entry by a pass.
    ///
    /// # Errors
    /// Those of the pass.
    pub fn rewrite(&mut self, mut pass: impl FnMut(&Graph) -> Result<Graph>) -> Result<()> {
        for entry in &mut self.entries {
            entry.graph = pass(&entry.graph)?;
        }
        Ok(())
    }

    /// Puts another graph in the place of an entry's.
    pub(crate) fn replace(&mut self, entry: usize, graph: Graph) {
        if let Some(entry) = self.entries.get_mut(entry) {
            entry.graph = graph;
        }
    }

    /// Reads a slot in a graph.
    pub fn read(&self, graph: &mut Graph, slot: SlotId) -> ValueId {
        graph.read(slot, &self.slots[slot.index()])
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// [`Error::DuplicateName`]; [`Error::UnknownId`] if the graph names a slot that is not here.
    pub fn entry(&mut self, name: &str, graph: Graph) -> Result<EntryId> {
        if self.entries.iter().any(|entry| entry.name == name) {
            return Err(Error::DuplicateName { what: "entry", name: name.to_owned() });
        }
        let reads = graph.nodes().iter().filter_map(|node| match node.op {
            Op::Slot(slot) => Some(slot),
            _ => None,
        });
        for slot in reads.chain(graph.writes().iter().map(|&(slot, _)| slot)) {
            if slot.index() >= self.slots.len() {
                return Err(Error::UnknownId {
                    what: "slot",
                    index: slot.index(),
                    count: self.slots.len(),
                });
            }
        }
        self.entries.push(Entry { name: name.to_owned(), graph });
        Ok(EntryId::new(self.entries.len() - 1))
    }
}

/// Where a value lies in the arena.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Place {
    /// First byte, a multiple of `ALIGNMENT`.
    pub offset: usize,
    /// Length in bytes.
    pub bytes: usize,
}

impl Place {
    /// Whether two places share a byte.
    pub const fn overlaps(self, other: Self) -> bool {
        self.offset < other.offset + other.bytes && other.offset < self.offset + self.bytes
    }
}

/// A planned entry.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ProgramEntry {
    /// Its name.
    pub name: String,
    /// Instructions in execution order.
    pub graph: Graph,
    /// Place of each value. Slots read, reshapes, and state updated in place share theirs with
    /// the slot or operand.
    pub places: Vec<Place>,
    /// Bytes of the largest set of temporary values alive at once: no plan can do with less.
    pub live_bytes: usize,
    /// Bytes of the arena that this entry's temporary values take.
    pub temporary_bytes: usize,
}

/// A compiled module: static, validated, memory planned. Slots lie at the start of the arena,
/// temporary values behind them; entries share the space of their temporaries.
///
/// ```
/// use onesigma_graph::{DType, Graph, Module, Program, Role, SlotKind};
///
/// // A counter: its state goes up by one in each step.
/// let mut module = Module::new();
/// let count = module.slot("count", SlotKind::State, [], DType::F32, Role::Statistic)?;
/// let mut graph = Graph::new();
/// let old = module.read(&mut graph, count);
/// let new = graph.map(&[old], |x| x[0].clone() + 1.0)?.one()?;
/// graph.write(count, new);
/// module.entry("step", graph)?;
///
/// let program = Program::new(module)?;
/// assert_eq!(program.entries()[0].name, "step");
/// assert!(program.arena_bytes() >= 4);
/// # Ok::<(), onesigma_graph::Error>(())
/// ```
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Program {
    pub(crate) version: u32,
    pub(crate) slots: Vec<Slot>,
    pub(crate) slot_places: Vec<Place>,
    pub(crate) entries: Vec<ProgramEntry>,
    pub(crate) arena_bytes: usize,
    pub(crate) seed: Option<SlotId>,
    pub(crate) step: Option<SlotId>,
}

impl Program {
    /// Plans the memory of a module, validates the whole and makes it a program.
    ///
    /// # Errors
    /// [`Error::SlotMismatch`] if an entry writes a value of another shape or type than the
    /// slot's; [`Error::InvalidProgram`].
    pub fn new(module: Module) -> Result<Self> {
        let Module { slots, entries, seed, step } = module;
        let (slot_places, slot_bytes) = passes::memory_plan::place_slots(&slots);
        let mut arena_bytes = slot_bytes;
        let mut planned = Vec::with_capacity(entries.len());
        for Entry { name, graph } in entries {
            check_writes(&name, &graph, &slots)?;
            let entry = passes::memory_plan::plan_entry(name, graph, &slot_places, slot_bytes);
            arena_bytes = arena_bytes.max(slot_bytes + entry.temporary_bytes);
            planned.push(entry);
        }
        let program = Self {
            version: PROGRAM_VERSION,
            slots,
            slot_places,
            entries: planned,
            arena_bytes,
            seed,
            step,
        };
        program.validate()?;
        Ok(program)
    }

    /// All slots.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Place of a slot's current frame.
    pub fn slot_place(&self, slot: SlotId) -> Place {
        self.slot_places[slot.index()]
    }

    /// All entries.
    pub fn entries(&self) -> &[ProgramEntry] {
        &self.entries
    }

    /// Size of the arena in bytes: what the program needs on a device.
    pub fn arena_bytes(&self) -> usize {
        self.arena_bytes
    }

    /// Bytes of all slots.
    pub fn slot_bytes(&self) -> usize {
        self.slot_places.iter().map(|place| place.offset + place.bytes).max().unwrap_or(0)
    }

    /// The input that seeds random numbers, `U32 [2]`, if the program has one.
    pub fn seed(&self) -> Option<SlotId> {
        self.seed
    }

    /// The input that counts steps, `U32 []`, if the program has one.
    pub fn step(&self) -> Option<SlotId> {
        self.step
    }

    /// Finds a slot by name.
    ///
    /// # Errors
    /// [`Error::UnknownName`].
    pub fn find_slot(&self, name: &str) -> Result<SlotId> {
        find("slot", name, self.slots.iter().map(|slot| slot.name.as_str())).map(SlotId::new)
    }

    /// Finds an entry by name.
    ///
    /// # Errors
    /// [`Error::UnknownName`].
    pub fn find_entry(&self, name: &str) -> Result<EntryId> {
        find("entry", name, self.entries.iter().map(|entry| entry.name.as_str())).map(EntryId::new)
    }

    /// Checks everything that a backend relies on: ids within their tables, operands before use,
    /// shapes and types as inferred, places aligned, of the right size and inside the arena, and
    /// no result placed over a value that is still needed. A program that was loaded from outside
    /// is validated before anything runs.
    ///
    /// # Errors
    /// [`Error::InvalidProgram`] with the first thing that is wrong.
    pub fn validate(&self) -> Result<()> {
        passes::validate::validate(self)
    }
}

fn find<'a>(
    what: &'static str,
    name: &str,
    names: impl Iterator<Item = &'a str> + Clone,
) -> Result<usize> {
    names.clone().position(|other| other == name).ok_or_else(|| Error::UnknownName {
        what,
        name: name.to_owned(),
        known: names.collect::<Vec<_>>().join(", "),
    })
}

fn check_writes(entry: &str, graph: &Graph, slots: &[Slot]) -> Result<()> {
    for &(slot, value) in graph.writes() {
        let slot = &slots[slot.index()];
        let value: &Value = graph.value(value);
        if slot.kind == SlotKind::Input {
            return Err(Error::SlotMismatch {
                slot: slot.name.clone(),
                entry: entry.to_owned(),
                expected: "an input, written by the host only".to_owned(),
                found: value.describe(),
            });
        }
        if value.shape != slot.shape || value.dtype != slot.dtype {
            return Err(Error::SlotMismatch {
                slot: slot.name.clone(),
                entry: entry.to_owned(),
                expected: format!("{} {}", slot.dtype, slot.shape),
                found: value.describe(),
            });
        }
    }
    Ok(())
}
