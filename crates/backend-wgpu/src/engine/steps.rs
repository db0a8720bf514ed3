//! Steps as commands: encoded in blocks, or timed kernel by kernel.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use onesigma_backend::{Result, Span};
use onesigma_graph::EntryId;
use wgpu::{BufferUsages, CommandEncoder};

use super::{BLOCK, UNDER_WAY, WgpuEngine};

impl WgpuEngine {
    /// Runs steps, each in submissions of a bounded number of dispatches.
    pub(super) fn submit_steps(&mut self, entry: usize, times: usize) -> Result<()> {
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        let mut encoded = 0;
        let count = self.entries[entry].dispatches.len();
        for at in 0..times {
            self.take_inputs(&mut encoder, entry, at);
            let mut from = 0;
            while from < count {
                let to = (from + BLOCK - encoded).min(count);
                self.encode(&mut encoder, entry, from..to, None);
                encoded += to - from;
                from = to;
                if encoded == BLOCK {
                    let new = self.gpu.device.create_command_encoder(&Default::default());
                    self.submit(std::mem::replace(&mut encoder, new))?;
                    encoded = 0;
                }
            }
            self.keep_outputs(&mut encoder, entry, at);
        }
        self.submit(encoder)
    }

    /// Submits, and waits for the oldest submission where too many are under way.
    fn submit(&mut self, encoder: CommandEncoder) -> Result<()> {
        let submission = self.gpu.queue.submit([encoder.finish()]);
        self.submitted.push_back(submission);
        if self.submitted.len() > UNDER_WAY
            && let Some(oldest) = self.submitted.pop_front()
        {
            self.gpu.wait(Some(oldest))?;
        }
        Ok(())
    }

    /// Encodes a part of a step's dispatches.
    pub(super) fn encode(
        &self,
        encoder: &mut CommandEncoder,
        entry: usize,
        part: Range<usize>,
        timestamp_writes: Option<wgpu::ComputePassTimestampWrites<'_>>,
    ) {
        let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes };
        let mut pass = encoder.begin_compute_pass(&descriptor);
        for dispatch in &self.entries[entry].dispatches[part] {
            pass.set_pipeline(&dispatch.pipeline);
            pass.set_bind_group(0, &dispatch.group, &[]);
            let [x, y, z] = dispatch.grid;
            pass.dispatch_workgroups(x, y, z);
        }
    }

    /// Copies what a step wrote to where the host will read it.
    pub(super) fn keep_outputs(&self, encoder: &mut CommandEncoder, entry: usize, at: usize) {
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
    pub(super) fn run_timed(&mut self, entry: usize, at: usize) -> Result<()> {
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
    pub(super) fn take_inputs(&self, encoder: &mut CommandEncoder, entry: usize, at: usize) {
        for &slot in &self.entries[entry].inputs {
            let state = &self.slots[slot];
            if state.host.frame_count() > 1
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
}
