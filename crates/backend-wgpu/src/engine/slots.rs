//! Slots: where they lie, what the host wrote, and frames beside them.

use onesigma_backend::{HostSlot, Result, expect_readable, find_slot};
use onesigma_graph::{SlotId, SlotKind};
use wgpu::Buffer;

use super::{WgpuEngine, storage};
use crate::memory::Place;

/// A slot as the host sees it.
#[derive(Debug)]
pub(super) struct Slot {
    /// With the frames of an input; those of an output stay on the device.
    pub host: HostSlot,
    /// Bytes of a frame in memory.
    pub padded: usize,
    pub place: Place,
    /// Inputs: whether memory holds what the host wrote.
    pub is_uploaded: bool,
    /// Frames on the device: of an input that has several, or of an output.
    pub staged: Option<(Buffer, usize)>,
    /// Outputs: frames of the last run that wrote it.
    pub written: usize,
}

/// What a read takes from the device.
pub(super) struct Wanted<'a> {
    pub parts: Vec<(&'a Buffer, usize, usize)>,
    frame: usize,
    padded: usize,
}

impl Wanted<'_> {
    /// Puts frames where the host wants them.
    pub(super) fn spread(&self, padded: &[u8], bytes: &mut [u8]) {
        let frames = padded.chunks_exact(self.padded);
        for (to, from) in bytes.chunks_exact_mut(self.frame).zip(frames) {
            to.copy_from_slice(&from[..self.frame]);
        }
    }
}

impl WgpuEngine {
    /// What a read of a slot takes from the device; `None` where `bytes` is filled already.
    pub(super) fn wanted(&self, slot: SlotId, bytes: &mut [u8]) -> Result<Option<Wanted<'_>>> {
        let state = find_slot(&self.slots, slot)?;
        let Slot { host, padded, place, .. } = state;
        let (frame, padded) = (host.frame_bytes, *padded);
        let parts = match host.kind {
            SlotKind::Output if state.written > 0 => {
                let found = bytes.len();
                expect_readable(&host.name, host.kind, frame, state.written, found)?;
                let Some((staged, _)) = &state.staged else { return Ok(None) };
                let count = found.checked_div(frame).unwrap_or(0);
                vec![(staged, (state.written - count) * padded, count * padded)]
            }
            _ if host.read(bytes)? => return Ok(None),
            _ => self.pieces(*place),
        };
        Ok((frame > 0).then_some(Wanted { parts, frame, padded }))
    }

    /// The buffer with a byte of the memory, and where in it that is.
    pub(super) fn at(&self, offset: usize) -> (&Buffer, usize) {
        (&self.memory[offset / self.segment], offset % self.segment)
    }

    /// The pieces of a place, one for each buffer: buffer, first byte, bytes.
    pub(super) fn pieces(&self, place: Place) -> Vec<(&Buffer, usize, usize)> {
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

    /// Puts a frame into a slot's place.
    pub(super) fn upload(&self, slot: usize, frame: &[u8]) {
        let mut padded = frame.to_vec();
        padded.resize(self.slots[slot].padded, 0);
        let mut done = 0;
        for (buffer, offset, bytes) in self.pieces(self.slots[slot].place) {
            self.gpu.queue.write_buffer(buffer, offset as u64, &padded[done..done + bytes]);
            done += bytes;
        }
    }

    /// A buffer of at least `frames` frames beside a slot.
    pub(super) fn stage(&mut self, slot: usize, frames: usize) -> Result<()> {
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
    pub(super) fn upload_inputs(&mut self, entry: usize) -> Result<()> {
        for slot in self.entries[entry].inputs.clone() {
            let state = &self.slots[slot];
            let frame = state.host.frame_bytes;
            if state.is_uploaded || frame == 0 {
                continue;
            }
            let frames = state.host.frame_count();
            if frames == 1 {
                self.upload(slot, &state.host.frames);
            } else {
                self.stage(slot, frames)?;
                let state = &self.slots[slot];
                let mut padded = vec![0; state.padded * frames];
                let rows = state.host.frames.chunks_exact(frame);
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
}
