//! Where the time of a step goes, by timestamps of the device.

use std::time::Duration;

use onesigma_backend::{Result, find_entry};
use onesigma_graph::EntryId;
use wgpu::{Buffer, BufferUsages, CommandEncoder, ComputePassTimestampWrites, QuerySet};

use super::WgpuEngine;
use crate::gpu::Gpu;

/// Times of a step on the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StepTimes {
    /// From the first kernel's start to the last one's end in one submission of several steps,
    /// divided by their number.
    pub step: Duration,
    /// The sum of the kernels' own times, each in a pass of its own.
    pub kernels: Duration,
    /// As many launches, one after another, of a kernel that does nothing: what of a step is spent
    /// outside of kernels is less, as it holds what that kernel takes.
    pub launches: Duration,
}

/// Two timestamps.
struct Pair {
    queries: QuerySet,
    resolved: Buffer,
}

impl Pair {
    fn new(gpu: &Gpu) -> Result<Self> {
        let (label, ty, count) = (None, wgpu::QueryType::Timestamp, 2);
        let descriptor = wgpu::QuerySetDescriptor { label, ty, count };
        let queries = gpu.device.create_query_set(&descriptor);
        let usage = BufferUsages::QUERY_RESOLVE | BufferUsages::COPY_SRC;
        Ok(Self { queries, resolved: gpu.buffer(16, usage, 0)? })
    }

    /// The time between the two, once the commands are done.
    fn elapsed(&self, gpu: &Gpu, mut encoder: CommandEncoder) -> Result<Duration> {
        encoder.resolve_query_set(&self.queries, 0..2, &self.resolved, 0);
        gpu.queue.submit([encoder.finish()]);
        let raw = gpu.download(&[(&self.resolved, 0, 16)])?;
        let ticks: Vec<u64> =
            raw.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let period = f64::from(gpu.queue.get_timestamp_period());
        Ok(Duration::from_nanos((ticks[1].saturating_sub(ticks[0]) as f64 * period) as u64))
    }

    /// Written at the start of the first pass and the end of the last.
    fn writes(&self, first: bool, last: bool) -> Option<ComputePassTimestampWrites<'_>> {
        (first || last).then_some(ComputePassTimestampWrites {
            query_set: &self.queries,
            beginning_of_pass_write_index: first.then_some(0),
            end_of_pass_write_index: last.then_some(1),
        })
    }
}

impl WgpuEngine {
    /// Runs an entry several times in each of three ways and tells the times; `None` where the
    /// device has no timestamps. The state is worth nothing afterwards.
    ///
    /// # Errors
    /// As [`run`](onesigma_backend::Engine::run).
    pub fn step_times(&mut self, entry: EntryId, count: usize) -> Result<Option<StepTimes>> {
        let index = entry.index();
        if self.step_time(entry, count)?.is_none() {
            return Ok(None);
        }
        let step = self.step_time(entry, count)?.unwrap_or_default();
        let before = self.spans.replace(Vec::new());
        self.run_timed(index, 0)?;
        let spans = std::mem::replace(&mut self.spans, before).unwrap_or_default();
        let kernels = spans.iter().map(|span| span.elapsed).sum();
        let count = self.entries[index].dispatches.len();
        // Drivers finish a kernel when it runs first.
        self.launch_time(count)?;
        let launches = self.launch_time(count)?;
        Ok(Some(StepTimes { step, kernels, launches }))
    }

    /// The time that a step takes on the device, from a submission of `count`; `None` where it has
    /// no timestamps.
    ///
    /// # Errors
    /// As [`run`](onesigma_backend::Engine::run).
    pub fn step_time(&mut self, entry: EntryId, count: usize) -> Result<Option<Duration>> {
        let index = entry.index();
        let steps = find_entry(&self.entries, entry)?;
        if !self.gpu.abilities.timestamps || count == 0 {
            return Ok(None);
        }
        let dispatches = steps.dispatches.len();
        for slot in steps.outputs.clone() {
            self.stage(slot, count)?;
        }
        self.upload_inputs(index)?;
        let pair = Pair::new(&self.gpu)?;
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        for step in 0..count {
            self.take_inputs(&mut encoder, index, step);
            let writes = pair.writes(step == 0, step + 1 == count);
            self.encode(&mut encoder, index, 0..dispatches, writes);
            self.keep_outputs(&mut encoder, index, step);
        }
        Ok(Some(pair.elapsed(&self.gpu, encoder)? / count as u32))
    }

    /// The time of launches of a kernel that does nothing but might write, so that each waits for
    /// the one before, as kernels of a program do.
    fn launch_time(&self, count: usize) -> Result<Duration> {
        const NOTHING: &str = "@group(0) @binding(0) var<storage, read_write> x: array<u32>;\n\
            @compute @workgroup_size(32)\n\
            fn main(@builtin(global_invocation_id) id: vec3<u32>) {\n    \
            if (id.x > 31u) { x[id.x] = 0u; }\n}\n";
        let gpu = &self.gpu;
        let made = gpu.pipeline(NOTHING, 1, "nothing")?;
        let buffer = gpu.buffer(256, BufferUsages::STORAGE, self.memory_bytes)?;
        let group = gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &made.layout,
            entries: &[wgpu::BindGroupEntry { binding: 0, resource: buffer.as_entire_binding() }],
        });
        let pair = Pair::new(gpu)?;
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        let timestamp_writes = pair.writes(true, true);
        let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes };
        let mut pass = encoder.begin_compute_pass(&descriptor);
        for _ in 0..count {
            pass.set_pipeline(&made.pipeline);
            pass.set_bind_group(0, &group, &[]);
            pass.dispatch_workgroups(1, 1, 1);
        }
        drop(pass);
        pair.elapsed(gpu, encoder)
    }
}
