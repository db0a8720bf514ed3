//! Where the time of a step goes, by timestamps of the device.

use std::time::Duration;

use onesigma_backend::{Error, Result};
use onesigma_graph::EntryId;
use wgpu::{BufferUsages, ComputePassTimestampWrites, QuerySet};

use super::WgpuEngine;

/// Times of a step on the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StepTimes {
    /// From the first kernel's start to the last one's end in one submission of several steps,
    /// divided by their number.
    pub step: Duration,
    /// The sum of the kernels' own times, each in a pass of its own.
    pub kernels: Duration,
    /// As `step`, where every kernel has one workgroup: what the launches take, and the little that
    /// one workgroup does. It is an upper bound of the time of a step outside of kernels.
    pub launches: Duration,
}

/// Two timestamps.
struct Pair {
    queries: QuerySet,
}

impl Pair {
    fn new(device: &wgpu::Device) -> Self {
        let ty = wgpu::QueryType::Timestamp;
        let queries =
            device.create_query_set(&wgpu::QuerySetDescriptor { label: None, ty, count: 2 });
        Self { queries }
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
        let (index, entries) = (entry.index(), self.entries.len());
        if index >= entries {
            return Err(Error::UnknownEntry { index, count: entries });
        }
        if !self.gpu.abilities.timestamps || count == 0 {
            return Ok(None);
        }
        for slot in self.entries[index].outputs.clone() {
            self.stage(slot, count)?;
        }
        self.upload_inputs(index)?;
        // Once more before, as devices raise their clocks under load.
        self.submission_time(index, count, false)?;
        let step = self.submission_time(index, count, false)?;
        let before = self.spans.replace(Vec::new());
        self.run_timed(index, 0)?;
        let spans = std::mem::replace(&mut self.spans, before).unwrap_or_default();
        let kernels = spans.iter().map(|span| span.elapsed).sum();
        let launches = self.submission_time(index, count, true)?;
        Ok(Some(StepTimes { step, kernels, launches }))
    }

    /// The time of a step in a submission of `count`, with whole kernels or one workgroup of each.
    fn submission_time(&self, entry: usize, count: usize, bare: bool) -> Result<Duration> {
        let gpu = &self.gpu;
        let pair = Pair::new(&gpu.device);
        let usage = BufferUsages::QUERY_RESOLVE | BufferUsages::COPY_SRC;
        let resolved = gpu.buffer(16, usage, self.memory_bytes)?;
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        for step in 0..count {
            let writes = pair.writes(step == 0, step + 1 == count);
            self.encode_with(&mut encoder, entry, step, writes, bare);
        }
        encoder.resolve_query_set(&pair.queries, 0..2, &resolved, 0);
        gpu.queue.submit([encoder.finish()]);
        let raw = gpu.download(&[(&resolved, 0, 16)])?;
        let ticks: Vec<u64> =
            raw.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let period = f64::from(gpu.queue.get_timestamp_period());
        let nanoseconds = ticks[1].saturating_sub(ticks[0]) as f64 * period / count as f64;
        Ok(Duration::from_nanos(nanoseconds as u64))
    }
}
