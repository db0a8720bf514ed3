//! A [`Backend`] made of [`Kernels`]: slots, frames, and nodes run one by one.

use crate::kernels::{Call, Kernels, dispatch, expect_supported};
use crate::{
    Backend, Caps, Engine, Error, Report, Result, Support, expect_frames, expect_readable,
    expect_writable, find_entry, find_slot, inputs_read,
};
use onesigma_graph::passes::legalise::node_support;
use onesigma_graph::passes::memory_plan::last_uses;
use onesigma_graph::{
    DType, EntryId, Graph, Op, Program, Slot, SlotId, SlotKind, Value, decompose,
};
use std::rc::Rc;

/// Runs programs op by op on kernels.
#[derive(Debug)]
pub struct OpByOp<K>(Rc<K>);

impl<K: Kernels> OpByOp<K> {
    /// A backend on these kernels.
    pub fn new(kernels: K) -> Self {
        Self(Rc::new(kernels))
    }

    /// The kernels.
    pub fn kernels(&self) -> &K {
        &self.0
    }

    /// As [`Backend::compile`], with the engine's own type.
    ///
    /// # Errors
    /// As [`Backend::compile`].
    pub fn executor(&self, program: &Program) -> Result<Executor<K>> {
        let kernels = &self.0;
        program.validate()?;
        let supports =
            |op: &Op, inputs: &[DType], output: DType| kernels.supports(op, inputs, output);
        let mut entries = Vec::new();
        let mut decomposed = 0;
        for entry in program.entries() {
            expect_supported(kernels.name(), &entry.graph, &supports)?;
            let emulated = |node: &onesigma_graph::Node| {
                node.op.is_fused()
                    && node_support(&entry.graph, node, &supports) == Support::Emulated
            };
            decomposed += entry.graph.nodes().iter().filter(|node| emulated(node)).count();
            let graph = decompose(&entry.graph, emulated)?;
            let last = last_uses(&graph);
            entries.push(Steps { reads: inputs_read(program, entry), last, graph });
        }
        let mut slots = Vec::new();
        for slot in program.slots() {
            let content = match slot.kind {
                SlotKind::Input => None,
                _ => {
                    let zeros = vec![0; slot.bytes()];
                    Some(Rc::new(kernels.upload(&slot.shape, slot.dtype, &zeros)?))
                }
            };
            let frames = match slot.kind {
                SlotKind::Output => vec![0; slot.bytes()],
                _ => Vec::new(),
            };
            slots.push(State { slot: slot.clone(), content, frames });
        }
        let mut notes = vec!["op by op: the memory plan is advice".to_owned()];
        if decomposed > 0 {
            notes.push(format!("{decomposed} fused ops run as their decomposition"));
        }
        Ok(Executor {
            kernels: Rc::clone(kernels),
            slots,
            entries,
            seed: program.seed(),
            step: program.step(),
            report: Report { planned_bytes: program.arena_bytes(), allocated_bytes: 0, notes },
        })
    }
}

impl<K: Kernels + 'static> Backend for OpByOp<K> {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn caps(&self) -> Caps {
        self.0.caps()
    }

    fn supports(&self, op: &Op, inputs: &[DType], output: DType) -> Support {
        self.0.supports(op, inputs, output)
    }

    fn compile(&self, program: &Program) -> Result<Box<dyn Engine>> {
        Ok(Box::new(self.executor(program)?))
    }
}

/// A slot with its content.
struct State<T> {
    slot: Slot,
    /// Current content of a state or output; of an input that the host gave as a tensor.
    content: Option<Rc<T>>,
    /// Inputs: what the host wrote. Outputs: the frames of the last run.
    frames: Vec<u8>,
}

impl<T> State<T> {
    /// Number of frames that an input holds.
    fn count(&self) -> usize {
        match self.slot.bytes() {
            0 => 1,
            _ if self.content.is_some() => 1,
            frame => self.frames.len() / frame,
        }
    }
}

/// An entry, ready to run.
struct Steps {
    graph: Graph,
    reads: Vec<SlotId>,
    last: Vec<usize>,
}

/// The engine of [`OpByOp`].
pub struct Executor<K: Kernels> {
    kernels: Rc<K>,
    slots: Vec<State<K::Tensor>>,
    entries: Vec<Steps>,
    seed: Option<SlotId>,
    step: Option<SlotId>,
    report: Report,
}

impl<K: Kernels> Executor<K> {
    /// The tensor in a slot, `None` for an input that was written as bytes.
    ///
    /// # Errors
    /// [`Error::UnknownSlot`].
    pub fn tensor(&self, slot: SlotId) -> Result<Option<&K::Tensor>> {
        Ok(self.slot(slot)?.content.as_deref())
    }

    /// Puts a tensor into a slot, past the element type of the host's bytes: in f64 for the exact
    /// reference. Shape and type are the caller's to keep.
    ///
    /// # Errors
    /// [`Error::UnknownSlot`].
    pub fn set_tensor(&mut self, slot: SlotId, tensor: K::Tensor) -> Result<()> {
        self.slot(slot)?;
        self.slots[slot.index()].content = Some(Rc::new(tensor));
        Ok(())
    }

    fn slot(&self, slot: SlotId) -> Result<&State<K::Tensor>> {
        find_slot(&self.slots, slot)
    }

    /// Content of a slot in step `at` of a run.
    fn content(&self, slot: SlotId, at: usize) -> Result<Rc<K::Tensor>> {
        let state = self.slot(slot)?;
        if let Some(content) = &state.content {
            return Ok(Rc::clone(content));
        }
        let frame = self.frame(slot, at)?;
        Ok(Rc::new(self.kernels.upload(&state.slot.shape, state.slot.dtype, frame)?))
    }

    fn frame(&self, slot: SlotId, at: usize) -> Result<&[u8]> {
        let state = self.slot(slot)?;
        let bytes = state.slot.bytes();
        let at = if state.count() == 1 { 0 } else { at };
        state.frames.get(at * bytes..(at + 1) * bytes).ok_or_else(|| Error::MissingFrames {
            slot: state.slot.name.clone(),
            found: state.count(),
            times: at + 1,
        })
    }

    /// The words of a U32 input that keys random numbers.
    fn words<const N: usize>(&self, slot: Option<SlotId>, at: usize) -> Result<[u32; N]> {
        let mut words = [0; N];
        let Some(slot) = slot else { return Ok(words) };
        let state = self.slot(slot)?;
        let downloaded;
        let bytes = match &state.content {
            Some(content) => {
                let mut bytes = vec![0; state.slot.bytes()];
                self.kernels.download(content, &state.slot.shape, state.slot.dtype, &mut bytes)?;
                downloaded = bytes;
                &downloaded[..]
            }
            None => self.frame(slot, at)?,
        };
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        Ok(words)
    }

    /// One step: the tensors that the entry writes, by slot.
    fn step(&self, entry: usize, at: usize) -> Result<Vec<(SlotId, Rc<K::Tensor>)>> {
        let Steps { graph, reads, last } = &self.entries[entry];
        let keyed = |slot: Option<SlotId>| slot.filter(|slot| reads.contains(slot));
        let seed = self.words::<2>(keyed(self.seed), at)?;
        let [step] = self.words::<1>(keyed(self.step), at)?;
        let mut tensors: Vec<Option<Rc<K::Tensor>>> = vec![None; graph.values().len()];
        for (index, node) in graph.nodes().iter().enumerate() {
            if let Op::Slot(slot) = node.op {
                tensors[node.outputs[0].index()] = Some(self.content(slot, at)?);
                continue;
            }
            let values =
                |ids: &[_]| -> Vec<&Value> { ids.iter().map(|&id| graph.value(id)).collect() };
            let (inputs, outputs) = (values(&node.inputs), values(&node.outputs));
            let call = Call { node, inputs: &inputs, outputs: &outputs, seed, step };
            let operands: Vec<&K::Tensor> =
                node.inputs.iter().filter_map(|id| tensors[id.index()].as_deref()).collect();
            let results = dispatch(&*self.kernels, &call, &operands)?;
            for (&output, result) in node.outputs.iter().zip(results) {
                tensors[output.index()] = Some(Rc::new(result));
            }
            for value in node.inputs.iter().chain(&node.outputs) {
                if last[value.index()] == index {
                    tensors[value.index()] = None;
                }
            }
        }
        let writes = graph.writes().iter();
        Ok(writes
            .filter_map(|&(slot, value)| Some((slot, tensors[value.index()].clone()?)))
            .collect())
    }
}

impl<K: Kernels> Engine for Executor<K> {
    fn write(&mut self, slot: SlotId, bytes: &[u8]) -> Result<()> {
        let State { slot: info, .. } = self.slot(slot)?;
        expect_writable(&info.name, info.kind, info.bytes(), bytes.len())?;
        if info.kind == SlotKind::State {
            let tensor = self.kernels.upload(&info.shape, info.dtype, bytes)?;
            self.slots[slot.index()].content = Some(Rc::new(tensor));
        } else {
            let state = &mut self.slots[slot.index()];
            state.content = None;
            bytes.clone_into(&mut state.frames);
        }
        Ok(())
    }

    fn read(&mut self, slot: SlotId, bytes: &mut [u8]) -> Result<()> {
        let state = self.slot(slot)?;
        let State { slot: info, content, frames } = state;
        let held = match info.kind {
            SlotKind::Output => frames.len().checked_div(info.bytes()).unwrap_or(1),
            _ => state.count(),
        };
        expect_readable(&info.name, info.kind, info.bytes(), held, bytes.len())?;
        match content {
            Some(tensor) if info.kind != SlotKind::Output => {
                return self.kernels.download(tensor, &info.shape, info.dtype, bytes);
            }
            // What nothing has written yet.
            _ if frames.is_empty() => bytes.fill(0),
            _ => bytes.copy_from_slice(&frames[frames.len() - bytes.len()..]),
        }
        Ok(())
    }

    fn run(&mut self, entry: EntryId, times: usize) -> Result<()> {
        let steps = find_entry(&self.entries, entry)?;
        if times == 0 {
            return Ok(());
        }
        for &slot in &steps.reads {
            let state = self.slot(slot)?;
            let found = state.count();
            if state.slot.kind == SlotKind::Input {
                expect_frames(&state.slot.name, found, times)?;
            }
        }
        for at in 0..times {
            for (slot, tensor) in self.step(entry.index(), at)? {
                let kernels = Rc::clone(&self.kernels);
                let State { slot: info, content, frames } = &mut self.slots[slot.index()];
                if info.kind == SlotKind::Output {
                    if at == 0 {
                        frames.clear();
                    }
                    let start = frames.len();
                    frames.resize(start + info.bytes(), 0);
                    kernels.download(&tensor, &info.shape, info.dtype, &mut frames[start..])?;
                }
                *content = Some(tensor);
            }
        }
        Ok(())
    }

    fn report(&self) -> Report {
        self.report.clone()
    }
}
