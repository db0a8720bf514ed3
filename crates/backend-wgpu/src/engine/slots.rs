//! Slots: where they lie, what the host wrote, and frames beside them.

use onesigma_backend::{Error, Result, expect_readable};
use onesigma_graph::{SlotId, SlotKind};
use wgpu::Buffer;

use super::{WgpuEngine, storage};
use crate::memory::Place;

/// A slot as the host sees it.
#[derive(Debug)]
pub(super) struct Slot {
    pub name: String,
    pub kind: SlotKind,
    /// Bytes of a frame as the host has it, and in memory.
    pub bytes: usize,
    pub padded: usize,
    pub place: Place,
    /// Inputs: what the host wrote.
    pub frames: Vec<u8>,
    /// Inputs: whether memory holds it.
    pub is_uploaded: bool,
    /// Frames on the device: of an input that has several, or of an output.
    pub staged: Option<(Buffer, usize)>,
    /// Outputs: frames of the last run that wrote it.
    pub written: usize,
}

impl Slot {
    pub(super) fn frame_count(&self) -> usize {
        self.frames.len().checked_div(self.bytes).unwrap_or(1)
    }
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
        let state = self.slot(slot)?;
        let (frame, found) = (state.bytes, bytes.len());
        let held = match state.kind {
            SlotKind::Output => state.written,
            _ => state.frame_count(),
        };
        expect_readable(&state.name, state.kind, frame, held, found)?;
        if frame == 0 {
            return Ok(None);
        }
        let padded = state.padded;
        let parts = match state.kind {
            SlotKind::Input => {
                bytes.copy_from_slice(&state.frames[state.frames.len() - found..]);
                return Ok(None);
            }
            // An output that no run has written.
            SlotKind::Output if state.written == 0 => {
                bytes.fill(0);
                return Ok(None);
            }
            SlotKind::State => self.pieces(state.place),
            SlotKind::Output => {
                let Some((staged, _)) = &state.staged else { return Ok(None) };
                let count = found / frame;
                vec![(staged, (state.written - count) * padded, count * padded)]
            }
        };
        Ok(Some(Wanted { parts, frame, padded }))
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

    pub(super) fn slot(&self, slot: SlotId) -> Result<&Slot> {
        let (index, count) = (slot.index(), self.slots.len());
        self.slots.get(index).ok_or(Error::UnknownSlot { index, count })
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
}
