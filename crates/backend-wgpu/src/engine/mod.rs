//! The engine: memory, pipelines and bind groups made once, steps encoded in blocks.

mod slots;
mod steps;
mod times;

use std::collections::VecDeque;
use std::sync::Arc;

use onesigma_backend::kernels::expect_supported;
use onesigma_backend::{
    Engine, Error, HostSlot, Report, Result, Span, find_entry, find_slot_mut, inputs_read,
};
use onesigma_graph::{EntryId, Op, Program, SlotId, SlotKind};
use wgpu::{BindGroup, Buffer, BufferUsages, ComputePipeline, SubmissionIndex};

use self::slots::Slot;
pub use self::times::StepTimes;
use crate::NAME;
use crate::backend::{Tuning, supports};
use crate::build;
use crate::gpu::Gpu;
use crate::ir::{Entry, Home};
use crate::lower::{Bounds, lower};
use crate::memory::{Memory, frame_bytes, place_slots, plan};

/// Dispatches after which what is encoded is submitted: the device works while more is encoded.
const BLOCK: usize = 256;
/// Submissions under way.
const UNDER_WAY: usize = 4;

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
    /// Submissions under way, oldest first.
    submitted: VecDeque<SubmissionIndex>,
    shaders: usize,
    spans: Option<Vec<Span>>,
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
            expect_supported(NAME, &entry.graph, &supports)?;
        }
        let bindings = (gpu.limits.max_storage_buffers_per_shader_stage as usize).min(24);
        let sizes: Vec<usize> = program
            .slots()
            .iter()
            .map(|slot| frame_bytes(slot.shape.numel(), slot.dtype))
            .collect();
        let (places, base) = place_slots(&sizes, segment);
        let bounds = Bounds {
            shared_bytes: gpu.abilities.shared_bytes,
            logits_bytes: tuning.logits_bytes.unwrap_or(Bounds::LOGITS_BYTES),
        };
        let mut lowered: Vec<(Entry, Memory)> = Vec::new();
        let mut end = base;
        for entry in program.entries() {
            // A kernel may need further bindings for tensors in several segments.
            let mut own = lower(&entry.graph, program, bindings.min(16), bounds)?;
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
                host: HostSlot::new(slot),
                padded,
                place,
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
            submitted: VecDeque::new(),
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

    /// Labels of an entry's kernels, in the order of a step's spans.
    pub fn kernels(&self, entry: EntryId) -> Vec<String> {
        let steps = self.entries.get(entry.index());
        steps.map_or_else(Vec::new, |steps| {
            steps.dispatches.iter().map(|dispatch| dispatch.label.clone()).collect()
        })
    }

    /// As [`read`](Engine::read), for callers that can be suspended: in a page, which cannot wait.
    ///
    /// # Errors
    /// As [`read`](Engine::read).
    pub async fn read_async(&mut self, slot: SlotId, bytes: &mut [u8]) -> Result<()> {
        let Some(wanted) = self.wanted(slot, bytes)? else { return Ok(()) };
        let padded = self.gpu.download_async(&wanted.parts).await?;
        wanted.spread(&padded, bytes);
        Ok(())
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
        let state = find_slot_mut(&mut self.slots, slot)?;
        if state.host.write(bytes)? {
            state.is_uploaded = false;
            return Ok(());
        }
        self.upload(slot.index(), bytes);
        self.gpu.check()
    }

    fn read(&mut self, slot: SlotId, bytes: &mut [u8]) -> Result<()> {
        let Some(wanted) = self.wanted(slot, bytes)? else { return Ok(()) };
        let padded = self.gpu.download(&wanted.parts)?;
        wanted.spread(&padded, bytes);
        Ok(())
    }

    fn run(&mut self, entry: EntryId, times: usize) -> Result<()> {
        let index = entry.index();
        let steps = find_entry(&self.entries, entry)?;
        if times == 0 {
            return Ok(());
        }
        for &slot in &steps.inputs {
            self.slots[slot].host.expect_frames(times)?;
        }
        self.gpu.check()?;
        let outputs = steps.outputs.clone();
        for &slot in &outputs {
            self.stage(slot, times)?;
        }
        self.upload_inputs(index)?;
        if self.spans.is_some() {
            for at in 0..times {
                self.run_timed(index, at)?;
            }
        } else {
            self.submit_steps(index, times)?;
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
