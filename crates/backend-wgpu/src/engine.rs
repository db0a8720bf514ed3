//! The engine: memory, pipelines and bind groups made once, steps encoded in blocks.

use std::sync::Arc;
use std::time::Duration;

use onesigma_backend::kernels::unsupported;
use onesigma_backend::{Engine, Error, Report, Result, Span, Support, inputs_read};
use onesigma_graph::passes::legalise::node_support;
use onesigma_graph::{EntryId, Graph, Op, Program, SlotId, SlotKind, Value, ValueId};
use wgpu::{BindGroup, Buffer, BufferUsages, CommandEncoder, ComputePipeline, SubmissionIndex};

use crate::NAME;
use crate::backend::{Tuning, supports};
use crate::build;
use crate::gpu::Gpu;
use crate::ir::{Entry, Home};
use crate::lower::lower;
use crate::memory::{Memory, Place, frame_bytes, place_slots, plan};

/// Dispatches of one submission, at most: longer runs are cut into blocks of steps.
const BLOCK: usize = 16_384;

/// A slot as the host sees it.
#[derive(Debug)]
struct Slot {
    name: String,
    kind: SlotKind,
    /// Bytes of a frame as the host has it, and in memory.
    bytes: usize,
    padded: usize,
    place: Place,
    /// Inputs: what the host wrote.
    frames: Vec<u8>,
    /// Inputs: whether memory holds it.
    is_uploaded: bool,
    /// Frames on the device: of an input that has several, or of an output.
    staged: Option<(Buffer, usize)>,
    /// Outputs: frames of the last run that wrote it.
    written: usize,
}

impl Slot {
    fn frame_count(&self) -> usize {
        self.frames.len().checked_div(self.bytes).unwrap_or(1)
    }
}

/// A kernel, ready to be dispatched.
#[derive(Debug)]
struct Dispatch {
    pipeline: ComputePipeline,
    group: BindGroup,
    grid: [u32; 3],
    label: String,
    /// Index of the node in the program's graph.
    node: usize,
}

/// An entry, ready to run.
#[derive(Debug)]
struct Steps {
    name: String,
    dispatches: Vec<Dispatch>,
    inputs: Vec<usize>,
    outputs: Vec<usize>,
}

/// Runs a program on a device of wgpu.
#[derive(Debug)]
pub struct WgpuEngine {
    gpu: Arc<Gpu>,
    segment: usize,
    memory: Vec<Buffer>,
    memory_bytes: usize,
    planned_bytes: usize,
    slots: Vec<Slot>,
    entries: Vec<Steps>,
    /// The submission before the last, which a new one waits for.
    submitted: Option<SubmissionIndex>,
    shaders: usize,
    spans: Option<Vec<Span>>,
}

/// Refuses a graph with a node that has no kernel.
fn refuse_unsupported(graph: &Graph) -> Result<()> {
    for node in graph.nodes() {
        if node_support(graph, node, &supports) == Support::No {
            let values = |ids: &[ValueId]| -> Vec<&Value> {
                ids.iter().map(|&id| graph.value(id)).collect()
            };
            let (inputs, outputs) = (values(&node.inputs), values(&node.outputs));
            return Err(unsupported(NAME, node, &inputs, &outputs));
        }
    }
    Ok(())
}

/// Usage of the buffers that hold tensors.
fn storage() -> BufferUsages {
    BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST
}

impl WgpuEngine {
    pub(crate) fn new(
        program: &Program,
        gpu: Arc<Gpu>,
        segment: usize,
        tuning: Tuning,
    ) -> Result<Self> {
        program.validate()?;
        gpu.check()?;
        for entry in program.entries() {
            refuse_unsupported(&entry.graph)?;
        }
        let bindings = (gpu.limits.max_storage_buffers_per_shader_stage as usize).min(24);
        let sizes: Vec<usize> = program
            .slots()
            .iter()
            .map(|slot| frame_bytes(slot.shape.numel(), slot.dtype))
            .collect();
        let (places, base) = place_slots(&sizes, segment);
        let shared = gpu.abilities.shared_bytes;
        let mut lowered: Vec<(Entry, Memory)> = Vec::new();
        let mut end = base;
        for entry in program.entries() {
            // A kernel may need further bindings for tensors in several segments.
            let mut own = lower(&entry.graph, program, bindings.min(16), shared)?;
            let memory = plan(&mut own, &places, base, segment);
            end = end.max(memory.end);
            lowered.push((own, memory));
        }
        // A device that tells its memory refuses at once, others when it is used up.
        if let Some(available) = gpu.memory_bytes.filter(|available| end as u64 > *available) {
            return Err(Error::OutOfMemory { needed: end as u64, available });
        }
        let mut memory = Vec::new();
        let mut allocated = 0;
        while allocated < end {
            let bytes = (end - allocated).min(segment).next_multiple_of(256);
            memory.push(gpu.buffer(bytes, storage(), allocated)?);
            allocated += bytes;
        }
        let slots = program
            .slots()
            .iter()
            .zip(places.iter().zip(&sizes))
            .map(|(slot, (&place, &padded))| Slot {
                name: slot.name.clone(),
                kind: slot.kind,
                bytes: slot.bytes(),
                padded,
                place,
                frames: Vec::new(),
                is_uploaded: false,
                staged: None,
                written: 0,
            })
            .collect();
        let mut engine = Self {
            gpu,
            segment,
            memory,
            memory_bytes: allocated,
            planned_bytes: program.arena_bytes(),
            slots,
            entries: Vec::new(),
            submitted: None,
            shaders: 0,
            spans: None,
        };
        let mut all = Vec::new();
        for (own, memory) in &lowered {
            all.push(build::kernels(own, memory, engine.gpu.abilities, tuning, bindings)?);
        }
        engine.gpu.prepare(all.iter().flatten())?;
        let mut shaders = std::collections::HashSet::new();
        for ((entry, (own, memory)), kernels) in program.entries().iter().zip(&lowered).zip(all) {
            let mut dispatches = Vec::with_capacity(kernels.len());
            for kernel in kernels {
                let count = kernel.bindings.len();
                let made = engine.gpu.pipeline(&kernel.source, count, &kernel.label)?;
                let group = engine.bind(&made.layout, own, memory, &kernel.bindings);
                shaders.insert(kernel.source);
                let named = |node: &onesigma_graph::Node| {
                    !matches!(node.op, Op::Slot(_)) && kernel.label.starts_with(&node.name)
                };
                // The longest name that fits is the node's own.
                let nodes = entry.graph.nodes().iter().enumerate();
                let node = nodes
                    .filter(|(_, node)| named(node))
                    .max_by_key(|(_, node)| node.name.len())
                    .map_or(0, |(at, _)| at);
                let (pipeline, grid, label) = (made.pipeline, kernel.grid, kernel.label);
                dispatches.push(Dispatch { pipeline, group, grid, label, node });
            }
            let of_kind = |kind: SlotKind, slots: &mut dyn Iterator<Item = SlotId>| {
                slots
                    .map(SlotId::index)
                    .filter(|&slot| program.slots()[slot].kind == kind)
                    .collect::<Vec<_>>()
            };
            let inputs = of_kind(SlotKind::Input, &mut inputs_read(program, entry).into_iter());
            let mut written = entry.graph.writes().iter().map(|&(slot, _)| slot);
            let outputs = of_kind(SlotKind::Output, &mut written);
            engine.entries.push(Steps { name: entry.name.clone(), dispatches, inputs, outputs });
        }
        engine.shaders = shaders.len();
        Ok(engine)
    }

    fn bind(
        &self,
        layout: &wgpu::BindGroupLayout,
        entry: &Entry,
        memory: &Memory,
        bindings: &[(usize, usize)],
    ) -> BindGroup {
        let entries: Vec<wgpu::BindGroupEntry<'_>> = bindings
            .iter()
            .enumerate()
            .map(|(binding, &(tensor, segment))| {
                let offset = memory.place(tensor).offset;
                let start = segment * self.segment;
                let bytes = match entry.tensors[tensor].home {
                    Home::Slot(slot) => self.slots[slot].padded,
                    Home::Temporary => entry.tensors[tensor].bytes(),
                };
                let bytes = (bytes - start).min(self.segment);
                let (buffer, inside) = self.at(offset + start);
                wgpu::BindGroupEntry {
                    binding: binding as u32,
                    resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                        buffer,
                        offset: inside as u64,
                        size: std::num::NonZeroU64::new(bytes as u64),
                    }),
                }
            })
            .collect();
        self.gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout,
            entries: &entries,
        })
    }

    /// The buffer with a byte of the memory, and where in it that is.
    fn at(&self, offset: usize) -> (&Buffer, usize) {
        (&self.memory[offset / self.segment], offset % self.segment)
    }

    /// The pieces of a place, one for each buffer: buffer, first byte, bytes.
    fn pieces(&self, place: Place) -> Vec<(&Buffer, usize, usize)> {
        let mut pieces = Vec::new();
        let mut done = 0;
        while done < place.bytes {
            let (buffer, inside) = self.at(place.offset + done);
            let bytes = (place.bytes - done).min(self.segment - inside);
            pieces.push((buffer, inside, bytes));
            done += bytes;
        }
        pieces
    }

    fn slot(&self, slot: SlotId) -> Result<&Slot> {
        let (index, count) = (slot.index(), self.slots.len());
        self.slots.get(index).ok_or(Error::UnknownSlot { index, count })
    }

    /// Puts a frame into a slot's place.
    fn upload(&self, slot: usize, frame: &[u8]) {
        let mut padded = frame.to_vec();
        padded.resize(self.slots[slot].padded, 0);
        let mut done = 0;
        for (buffer, offset, bytes) in self.pieces(self.slots[slot].place) {
            self.gpu.queue.write_buffer(buffer, offset as u64, &padded[done..done + bytes]);
            done += bytes;
        }
    }

    /// A buffer of at least `frames` frames beside a slot.
    fn stage(&mut self, slot: usize, frames: usize) -> Result<()> {
        let has = self.slots[slot].staged.as_ref().map_or(0, |(_, has)| *has);
        if has < frames {
            self.slots[slot].staged = None;
            let bytes = self.slots[slot].padded.saturating_mul(frames);
            let buffer = self.gpu.buffer(bytes, storage(), self.memory_bytes)?;
            self.slots[slot].staged = Some((buffer, frames));
        }
        Ok(())
    }

    /// Makes the inputs of a run available: single frames in their places, others beside.
    fn upload_inputs(&mut self, entry: usize) -> Result<()> {
        for slot in self.entries[entry].inputs.clone() {
            let state = &self.slots[slot];
            if state.is_uploaded || state.bytes == 0 {
                continue;
            }
            let frames = state.frame_count();
            if frames == 1 {
                self.upload(slot, &state.frames);
            } else {
                self.stage(slot, frames)?;
                let state = &self.slots[slot];
                let mut padded = vec![0; state.padded * frames];
                let rows = state.frames.chunks_exact(state.bytes);
                for (to, from) in padded.chunks_exact_mut(state.padded).zip(rows) {
                    to[..from.len()].copy_from_slice(from);
                }
                if let Some((buffer, _)) = &state.staged {
                    self.gpu.queue.write_buffer(buffer, 0, &padded);
                }
            }
            self.slots[slot].is_uploaded = true;
        }
        Ok(())
    }

    /// Encodes one step.
    fn encode(&self, encoder: &mut CommandEncoder, entry: usize, at: usize) {
        let steps = &self.entries[entry];
        self.take_inputs(encoder, entry, at);
        let mut pass = encoder.begin_compute_pass(&Default::default());
        for dispatch in &steps.dispatches {
            pass.set_pipeline(&dispatch.pipeline);
            pass.set_bind_group(0, &dispatch.group, &[]);
            let [x, y, z] = dispatch.grid;
            pass.dispatch_workgroups(x, y, z);
        }
        drop(pass);
        self.keep_outputs(encoder, entry, at);
    }

    /// Copies what a step wrote to where the host will read it.
    fn keep_outputs(&self, encoder: &mut CommandEncoder, entry: usize, at: usize) {
        for &slot in &self.entries[entry].outputs {
            let state = &self.slots[slot];
            let Some((staged, _)) = &state.staged else { continue };
            let mut to = at * state.padded;
            for (buffer, offset, bytes) in self.pieces(state.place) {
                let bytes = bytes as u64;
                encoder.copy_buffer_to_buffer(buffer, offset as u64, staged, to as u64, bytes);
                to += bytes as usize;
            }
        }
    }

    /// Runs one step with a pass for each kernel, and takes its times.
    fn run_timed(&mut self, entry: usize, at: usize) -> Result<()> {
        let gpu = Arc::clone(&self.gpu);
        let count = self.entries[entry].dispatches.len();
        // A query set holds so many.
        let mut times: Vec<u64> = Vec::new();
        for (n, chunk) in self.entries[entry].dispatches.chunks(1024).enumerate() {
            let queries = gpu.device.create_query_set(&wgpu::QuerySetDescriptor {
                label: None,
                ty: wgpu::QueryType::Timestamp,
                count: 2 * chunk.len() as u32,
            });
            let bytes = 16 * chunk.len();
            let usage = BufferUsages::QUERY_RESOLVE | BufferUsages::COPY_SRC;
            let resolved = gpu.buffer(bytes, usage, self.memory_bytes)?;
            let mut encoder = gpu.device.create_command_encoder(&Default::default());
            if n == 0 {
                self.take_inputs(&mut encoder, entry, at);
            }
            for (n, dispatch) in chunk.iter().enumerate() {
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                    label: None,
                    timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                        query_set: &queries,
                        beginning_of_pass_write_index: Some(2 * n as u32),
                        end_of_pass_write_index: Some(2 * n as u32 + 1),
                    }),
                });
                pass.set_pipeline(&dispatch.pipeline);
                pass.set_bind_group(0, &dispatch.group, &[]);
                let [x, y, z] = dispatch.grid;
                pass.dispatch_workgroups(x, y, z);
            }
            encoder.resolve_query_set(&queries, 0..2 * chunk.len() as u32, &resolved, 0);
            gpu.queue.submit([encoder.finish()]);
            let raw = gpu.download(&[(&resolved, 0, bytes)])?;
            times.extend(raw.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)));
        }
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        self.keep_outputs(&mut encoder, entry, at);
        gpu.queue.submit([encoder.finish()]);
        let period = f64::from(gpu.queue.get_timestamp_period());
        let nanoseconds = |ticks: u64| Duration::from_nanos((ticks as f64 * period) as u64);
        let first = times.first().copied().unwrap_or(0);
        let offset = self.spans.as_ref().and_then(|spans| spans.last());
        let offset = offset.map_or(Duration::ZERO, |span| span.start + span.elapsed);
        let mut spans = Vec::with_capacity(count);
        for (dispatch, pair) in self.entries[entry].dispatches.iter().zip(times.as_chunks::<2>().0)
        {
            spans.push(Span {
                entry: EntryId::new(entry),
                node: dispatch.node,
                start: offset + nanoseconds(pair[0].saturating_sub(first)),
                elapsed: nanoseconds(pair[1].saturating_sub(pair[0])),
            });
        }
        if let Some(all) = &mut self.spans {
            all.append(&mut spans);
        }
        Ok(())
    }

    /// Copies the frames of a step into their slots.
    fn take_inputs(&self, encoder: &mut CommandEncoder, entry: usize, at: usize) {
        for &slot in &self.entries[entry].inputs {
            let state = &self.slots[slot];
            if state.frame_count() > 1
                && let Some((staged, _)) = &state.staged
            {
                let mut from = at * state.padded;
                for (buffer, offset, bytes) in self.pieces(state.place) {
                    let bytes = bytes as u64;
                    encoder.copy_buffer_to_buffer(
                        staged,
                        from as u64,
                        buffer,
                        offset as u64,
                        bytes,
                    );
                    from += bytes as usize;
                }
            }
        }
    }

    /// Labels of an entry's kernels, in the order of a step's spans.
    pub fn kernels(&self, entry: EntryId) -> Vec<String> {
        let steps = self.entries.get(entry.index());
        steps.map_or_else(Vec::new, |steps| {
            steps.dispatches.iter().map(|dispatch| dispatch.label.clone()).collect()
        })
    }

    /// Waits for everything that was submitted.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn synchronize(&self) -> Result<()> {
        self.gpu.wait(None)
    }
}

impl Engine for WgpuEngine {
    fn write(&mut self, slot: SlotId, bytes: &[u8]) -> Result<()> {
        let state = self.slot(slot)?;
        let frame = state.bytes;
        let whole = match frame {
            0 => bytes.is_empty(),
            _ => !bytes.is_empty() && bytes.len().is_multiple_of(frame),
        };
        let fits = match state.kind {
            SlotKind::Output => return Err(Error::NotWritable { slot: state.name.clone() }),
            SlotKind::State => bytes.len() == frame,
            SlotKind::Input => whole,
        };
        if !fits {
            let (slot, found) = (state.name.clone(), bytes.len());
            return Err(Error::WrongSize { slot, frame, found });
        }
        if state.kind == SlotKind::Input {
            let state = &mut self.slots[slot.index()];
            state.frames.clear();
            state.frames.extend_from_slice(bytes);
            state.is_uploaded = false;
            return Ok(());
        }
        self.upload(slot.index(), bytes);
        self.gpu.check()
    }

    fn read(&mut self, slot: SlotId, bytes: &mut [u8]) -> Result<()> {
        let state = self.slot(slot)?;
        let (frame, found) = (state.bytes, bytes.len());
        let whole = found.checked_rem(frame).unwrap_or(found) == 0;
        let stored = match state.kind {
            SlotKind::State => 1,
            SlotKind::Input => state.frame_count(),
            // An output that no run has written is one frame of zeros.
            SlotKind::Output => state.written.max(1),
        };
        if state.kind == SlotKind::Input && state.frames.is_empty() && frame > 0 {
            let slot = state.name.clone();
            return Err(Error::MissingFrames { slot, found: 0, times: 1 });
        }
        let fits = match state.kind {
            SlotKind::State => found == frame,
            _ => whole && found >= frame && found <= stored * frame,
        };
        if !fits {
            return Err(Error::WrongSize { slot: state.name.clone(), frame, found });
        }
        if frame == 0 {
            return Ok(());
        }
        let padded = match state.kind {
            SlotKind::Input => {
                bytes.copy_from_slice(&state.frames[state.frames.len() - found..]);
                return Ok(());
            }
            SlotKind::Output if state.written == 0 => {
                bytes.fill(0);
                return Ok(());
            }
            SlotKind::State => self.gpu.download(&self.pieces(state.place))?,
            SlotKind::Output => {
                let Some((staged, _)) = &state.staged else { return Ok(()) };
                let count = found / frame;
                let first = (state.written - count) * state.padded;
                self.gpu.download(&[(staged, first, count * state.padded)])?
            }
        };
        for (to, from) in bytes.chunks_exact_mut(frame).zip(padded.chunks_exact(state.padded)) {
            to.copy_from_slice(&from[..frame]);
        }
        Ok(())
    }

    fn run(&mut self, entry: EntryId, times: usize) -> Result<()> {
        let (index, count) = (entry.index(), self.entries.len());
        let steps = self.entries.get(index).ok_or(Error::UnknownEntry { index, count })?;
        if times == 0 {
            return Ok(());
        }
        for &slot in &steps.inputs {
            let state = &self.slots[slot];
            let found = state.frame_count();
            if state.bytes > 0 && found != 1 && found != times {
                return Err(Error::MissingFrames { slot: state.name.clone(), found, times });
            }
        }
        self.gpu.check()?;
        let outputs = steps.outputs.clone();
        let block = (BLOCK / steps.dispatches.len().max(1)).max(1);
        for &slot in &outputs {
            self.stage(slot, times)?;
        }
        self.upload_inputs(index)?;
        if self.spans.is_some() {
            for at in 0..times {
                self.run_timed(index, at)?;
            }
        } else {
            let mut at = 0;
            while at < times {
                let end = (at + block).min(times);
                let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
                for step in at..end {
                    self.encode(&mut encoder, index, step);
                }
                let submission = self.gpu.queue.submit([encoder.finish()]);
                // One block runs while the next is encoded.
                if let Some(before) = self.submitted.replace(submission) {
                    self.gpu.wait(Some(before))?;
                }
                at = end;
            }
        }
        for slot in outputs {
            self.slots[slot].written = times;
        }
        self.gpu.check()
    }

    fn report(&self) -> Report {
        let staged: usize = self
            .slots
            .iter()
            .filter_map(|slot| slot.staged.as_ref().map(|(_, frames)| frames * slot.padded))
            .sum();
        let mut notes = vec![
            self.gpu.abilities.describe(),
            format!("{} shaders, {} buffers", self.shaders, self.memory.len()),
        ];
        for entry in &self.entries {
            notes.push(format!("{}: {} dispatches", entry.name, entry.dispatches.len()));
        }
        Report {
            planned_bytes: self.planned_bytes,
            allocated_bytes: self.memory_bytes + staged,
            notes,
        }
    }

    fn record(&mut self) -> bool {
        if self.gpu.abilities.timestamps {
            self.spans = Some(Vec::new());
        }
        self.gpu.abilities.timestamps
    }

    fn take_spans(&mut self) -> Vec<Span> {
        self.spans.take().unwrap_or_default()
    }
}
