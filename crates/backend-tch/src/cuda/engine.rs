//! A compiled program on a device.

use std::collections::HashMap;
use std::rc::Rc;

use onesigma_backend::kernels::expect_supported;
use onesigma_backend::{Engine, Error, HostSlot, Report, Result, find_entry, find_slot_mut};
use onesigma_graph::{EntryId, Program, SlotId, SlotKind};

use super::assemble::{Param, Work};
use super::compiled::{Compiled, CompiledEntry, CudaMemory, compile};
use super::derived::Derived;
use super::device::{Device, Function, Held, Prepared, Replay};
use super::ir::{Home, TensorId};
use super::profile::Profile;

/// A slot with its frames.
struct Slot {
    host: HostSlot,
    address: u64,
    /// Frames on the device: address, bytes that fit.
    staging: Option<(u64, usize)>,
    /// Whether the frames on the device are those of the host.
    staged: bool,
}

/// A call that is ready to be queued.
#[derive(Clone, Copy)]
enum Ready {
    Kernel(Function),
    Product(Prepared),
    Other,
}

/// An entry on the device.
struct Entry {
    compiled: CompiledEntry,
    ready: Vec<Ready>,
    runs: usize,
    replay: Option<Replay>,
    /// What the captured entry uses of the library's memory.
    held: Vec<Rc<dyn Held>>,
}

/// A copy of a state slot; it has the slot with the number of the program's slots plus its own.
struct Copy {
    source: usize,
    /// Whether it is a copy of what the slot holds now.
    fresh: bool,
}

/// The engine.
pub(crate) struct DeviceEngine {
    device: Rc<dyn Device>,
    /// Those of the program, then those of the copies.
    slots: Vec<Slot>,
    copies: Vec<Copy>,
    /// Those of the program, then those that refresh copies.
    entries: Vec<Entry>,
    /// Number of the program's entries.
    entry_count: usize,
    /// Entry that refreshes the copies of a slot.
    refreshing: HashMap<usize, usize>,
    seed: Option<usize>,
    step: Option<usize>,
    /// First byte of the temporary tensors.
    temporaries: u64,
    arena: (u64, usize),
    planned_bytes: usize,
    memory: CudaMemory,
    profile: Option<Profile>,
}

impl Drop for DeviceEngine {
    fn drop(&mut self) {
        // Errors have been reported where they occurred.
        let _ = self.device.synchronize();
        for slot in &self.slots {
            if let Some((address, _)) = slot.staging {
                self.device.free(address);
            }
        }
        self.device.free(self.arena.0);
    }
}

impl DeviceEngine {
    /// With `profile` every instruction is measured on its own, and nothing is replayed. `limit`
    /// is how many bytes may be used, if not all that are free.
    pub(crate) fn new(
        program: &Program,
        device: Rc<dyn Device>,
        profile: bool,
        limit: Option<u64>,
    ) -> Result<Self> {
        program.validate()?;
        for entry in program.entries() {
            expect_supported(super::NAME, &entry.graph, &super::supports)?;
        }
        let room = limit.or_else(|| device.free_bytes());
        let compiled = compile(program, &*device, room)?;
        let memory = compiled.memory();
        tracing::debug!(?memory, "planned");
        if let Some(available) = room.filter(|&room| room < memory.total() as u64) {
            return Err(Error::OutOfMemory { needed: memory.total() as u64, available });
        }
        let bytes = memory.arena().max(1);
        let arena = device.allocate(bytes)?;
        let Compiled { entries, entry_count, copies, refreshing, offsets, .. } = compiled;
        let own = program.slots().iter().map(HostSlot::new);
        let more = copies.iter().map(|copy: &Derived| HostSlot {
            name: format!("copy of slot {}", copy.source),
            kind: SlotKind::State,
            frame_bytes: copy.bytes(),
            frames: Vec::new(),
        });
        let slots = own
            .chain(more)
            .zip(offsets)
            .map(|(host, offset)| Slot {
                host,
                address: arena + offset as u64,
                staging: None,
                staged: false,
            })
            .collect();
        let copies = copies.iter().map(|copy| Copy { source: copy.source, fresh: false }).collect();
        let entries = entries.into_iter().map(|compiled| Entry {
            compiled,
            ready: Vec::new(),
            runs: 0,
            replay: None,
            held: Vec::new(),
        });
        let mut engine = Self {
            device,
            slots,
            copies,
            entries: entries.collect(),
            entry_count,
            refreshing,
            seed: program.seed().map(SlotId::index),
            step: program.step().map(SlotId::index),
            temporaries: arena + (memory.slots + memory.copies) as u64,
            arena: (arena, bytes),
            planned_bytes: program.arena_bytes(),
            memory,
            profile: profile.then(Profile::default),
        };
        engine.prepare()?;
        Ok(engine)
    }

    /// Compiles kernels and prepares products; what that leaves in memory is cleared.
    fn prepare(&mut self) -> Result<()> {
        let kernels: Vec<_> = self
            .entries
            .iter()
            .flat_map(|entry| &entry.compiled.instructions)
            .filter_map(|instruction| match &instruction.work {
                Work::Kernel { kernel, .. } => Some(kernel),
                _ => None,
            })
            .collect();
        let mut functions = self.device.compile(&kernels)?.into_iter();
        let mut tuned = false;
        for at in 0..self.entries.len() {
            let entry = &self.entries[at];
            let mut ready = Vec::new();
            for instruction in &entry.compiled.instructions {
                ready.push(match &instruction.work {
                    Work::Kernel { .. } => match functions.next() {
                        Some(function) => Ready::Kernel(function),
                        None => Ready::Other,
                    },
                    Work::Product { product, left, right, out, more } => {
                        if !std::mem::replace(&mut tuned, true) {
                            self.device.scramble(self.arena.0, self.arena.1)?;
                        }
                        let at = [Some(*left), Some(*right), Some(*out), *more]
                            .map(|tensor| tensor.map_or(0, |tensor| self.stand_in(entry, tensor)));
                        Ready::Product(self.device.prepare(product, at)?)
                    }
                    _ => Ready::Other,
                });
            }
            self.entries[at].ready = ready;
        }
        if tuned {
            self.device.clear(self.arena.0, self.arena.1)?;
            self.device.synchronize()?;
        }
        Ok(())
    }

    /// Where a tensor lies while products are timed: what a library has yet to make, at the start
    /// of the arena, which holds tensors of its size, and whose content does not matter then.
    fn stand_in(&self, entry: &Entry, tensor: TensorId) -> u64 {
        match entry.compiled.lowered.tensors[tensor].home {
            Home::Library => self.arena.0,
            _ => self.address(entry, tensor, &HashMap::new()),
        }
    }

    /// Where a tensor of an entry lies.
    fn address(
        &self,
        entry: &Entry,
        tensor: TensorId,
        held: &HashMap<TensorId, Rc<dyn Held>>,
    ) -> u64 {
        match entry.compiled.lowered.tensors[tensor].home {
            Home::Slot(slot) => self.slots[slot].address,
            Home::Temporary => self.temporaries + entry.compiled.plan.offsets[tensor] as u64,
            Home::Library => held.get(&tensor).map_or(0, |held| held.address()),
        }
    }

    /// Queues every instruction of an entry; gives what it used of the library's memory.
    fn queue(&self, entry: &Entry) -> Result<Vec<Rc<dyn Held>>> {
        let mut held: HashMap<TensorId, Rc<dyn Held>> = HashMap::new();
        for (at, instruction) in entry.compiled.instructions.iter().enumerate() {
            match &self.profile {
                Some(profile) if entry.runs > 0 => {
                    let time = self.device.time(&mut || self.queue_one(entry, at, &mut held))?;
                    profile.add(&entry.compiled.name, at, &instruction.label, time);
                }
                _ => self.queue_one(entry, at, &mut held)?,
            }
            // The library may use memory again as soon as the last reader is queued.
            let dead = |tensor: &TensorId| entry.compiled.plan.last[*tensor] <= Some(at);
            let gone: Vec<TensorId> = held.keys().copied().filter(dead).collect();
            for tensor in gone {
                held.remove(&tensor);
            }
        }
        Ok(held.into_values().collect())
    }

    fn queue_one(
        &self,
        entry: &Entry,
        at: usize,
        held: &mut HashMap<TensorId, Rc<dyn Held>>,
    ) -> Result<()> {
        let slot = |slot: Option<usize>| slot.map_or(0, |slot| self.slots[slot].address);
        let address = |tensor: TensorId| self.address(entry, tensor, held);
        match (&entry.compiled.instructions[at].work, entry.ready[at]) {
            (Work::Kernel { kernel, params }, Ready::Kernel(function)) => {
                let arguments: Vec<u64> = params
                    .iter()
                    .map(|param| match *param {
                        Param::Tensor(tensor) => address(tensor),
                        Param::Seed => slot(self.seed),
                        Param::Step => slot(self.step),
                    })
                    .collect();
                self.device.launch(function, kernel, &arguments)
            }
            (Work::Product { left, right, out, more, .. }, Ready::Product(prepared)) => {
                let tensors = [Some(*left), Some(*right), Some(*out), *more];
                self.device.multiply(prepared, tensors.map(|one| one.map_or(0, address)))
            }
            (Work::Attention { spec, inputs, out, lse }, _) => {
                let made = self.device.attention(spec, inputs.map(address))?;
                held.extend([*out, *lse].into_iter().zip(made));
                Ok(())
            }
            (Work::AttentionGrad { spec, inputs, outs }, _) => {
                let made = self.device.attention_grad(spec, inputs.map(address))?;
                held.extend(outs.iter().copied().zip(made));
                Ok(())
            }
            (Work::Copy { from, to }, _) => {
                let bytes = entry.compiled.lowered.tensors[*from].bytes();
                self.device.copy(address(*from), address(*to), bytes)
            }
            (work, _) => {
                let reason = format!("{work:?} was not prepared");
                Err(Error::Device { backend: super::NAME.to_owned(), reason })
            }
        }
    }

    /// Makes the copies that an entry reads anew, where the host wrote what they are copies of.
    fn refresh(&mut self, at: usize) -> Result<()> {
        let stale: Vec<usize> = self.entries[at]
            .compiled
            .copies_read
            .iter()
            .filter(|&&copy| !self.copies[copy].fresh)
            .map(|&copy| self.copies[copy].source)
            .collect();
        for source in stale {
            if let Some(&entry) = self.refreshing.get(&source) {
                self.queue(&self.entries[entry])?;
                self.mark(source, true);
            }
        }
        Ok(())
    }

    fn mark(&mut self, source: usize, fresh: bool) {
        for copy in self.copies.iter_mut().filter(|copy| copy.source == source) {
            copy.fresh = fresh;
        }
    }

    fn run_step(&mut self, at: usize) -> Result<()> {
        if let Some(replay) = self.entries[at].replay {
            return self.device.replay(replay);
        }
        // The first run loads what is loaded lazily; the second is captured.
        if self.entries[at].runs > 0 && self.profile.is_none() {
            let (device, mut held) = (Rc::clone(&self.device), Vec::new());
            let entry = &self.entries[at];
            let captured = device.capture(&mut || {
                held = self.queue(entry)?;
                Ok(())
            })?;
            if let Some(replay) = captured {
                let entry = &mut self.entries[at];
                (entry.replay, entry.held) = (Some(replay), held);
                return self.device.replay(replay);
            }
        }
        self.queue(&self.entries[at])?;
        self.entries[at].runs += 1;
        Ok(())
    }

    /// Puts the frames of a slot on the device; gives their address.
    fn stage(&mut self, slot: usize, bytes: usize) -> Result<u64> {
        let state = &mut self.slots[slot];
        if let Some((address, room)) = state.staging
            && room >= bytes
        {
            return Ok(address);
        }
        if let Some((address, _)) = state.staging.take() {
            self.device.synchronize()?;
            self.device.free(address);
        }
        state.staged = false;
        let address = self.device.allocate(bytes.max(1))?;
        state.staging = Some((address, bytes));
        Ok(address)
    }

    fn run_steps(&mut self, at: usize, times: usize) -> Result<()> {
        let (inputs, outputs) =
            (self.entries[at].compiled.inputs.clone(), self.entries[at].compiled.outputs.clone());
        for &slot in &inputs {
            let bytes = self.slots[slot].host.frames.len();
            let address = self.stage(slot, bytes)?;
            let state = &mut self.slots[slot];
            if !std::mem::replace(&mut state.staged, true) {
                self.device.upload(address, &state.host.frames)?;
            }
        }
        self.refresh(at)?;
        let mut results = Vec::new();
        for &slot in &outputs {
            results.push(self.stage(slot, self.slots[slot].host.frame_bytes * times)?);
        }
        for step in 0..times {
            for &slot in &inputs {
                let state = &self.slots[slot];
                let (frame, bytes) = (state.host.frame_of(step), state.host.frame_bytes);
                if let Some((address, _)) = state.staging
                    && (step == 0 || frame > 0)
                {
                    let from = address + (frame * bytes) as u64;
                    self.device.copy(from, state.address, bytes)?;
                }
            }
            self.run_step(at)?;
            for (&slot, address) in outputs.iter().zip(&results) {
                let state = &self.slots[slot];
                let bytes = state.host.frame_bytes;
                let to = address + (step * bytes) as u64;
                self.device.copy(state.address, to, bytes)?;
            }
        }
        // An entry that writes a slot writes its copies too.
        let written: Vec<usize> =
            self.entries[at].compiled.lowered.writes.iter().map(|&(slot, _)| slot).collect();
        for slot in written {
            self.mark(slot, true);
        }
        for (&slot, address) in outputs.iter().zip(&results) {
            let host = &mut self.slots[slot].host;
            let mut frames = vec![0; host.frame_bytes * times];
            self.device.download(*address, &mut frames)?;
            host.frames = frames;
        }
        self.device.synchronize()
    }

    fn slot(&mut self, id: SlotId) -> Result<&mut Slot> {
        let own = self.slots.len() - self.copies.len();
        find_slot_mut(&mut self.slots[..own], id)
    }
}

impl Engine for DeviceEngine {
    fn write(&mut self, slot: SlotId, bytes: &[u8]) -> Result<()> {
        let state = self.slot(slot)?;
        if state.host.write(bytes)? {
            state.staged = false;
            return Ok(());
        }
        let address = state.address;
        self.device.upload(address, bytes)?;
        self.mark(slot.index(), false);
        Ok(())
    }

    fn read(&mut self, slot: SlotId, bytes: &mut [u8]) -> Result<()> {
        let state = self.slot(slot)?;
        if state.host.read(bytes)? {
            return Ok(());
        }
        let address = state.address;
        self.device.download(address, bytes)
    }

    fn run(&mut self, entry: EntryId, times: usize) -> Result<()> {
        let index = entry.index();
        let entry = find_entry(&self.entries[..self.entry_count], entry)?;
        if times == 0 {
            return Ok(());
        }
        for &at in &entry.compiled.inputs {
            self.slots[at].host.expect_frames(times)?;
        }
        self.run_steps(index, times)
    }

    fn report(&self) -> Report {
        let staging: usize =
            self.slots.iter().filter_map(|slot| slot.staging).map(|(_, bytes)| bytes).sum();
        let mut notes = Vec::new();
        for entry in &self.entries[..self.entry_count] {
            let kernels = entry.compiled.instructions.len();
            let replayed = if entry.replay.is_some() { ", replayed" } else { "" };
            notes.push(format!("{}: {kernels} launches{replayed}", entry.compiled.name));
        }
        notes.push(self.memory.to_string());
        notes.extend(self.profile.as_ref().map(Profile::table));
        Report {
            planned_bytes: self.planned_bytes,
            allocated_bytes: self.arena.1 + staging + self.device.library_bytes(),
            notes,
        }
    }
}
