//! A slot as the host sees it, for the engines of backends that compile whole programs.

use onesigma_graph::{EntryId, Slot, SlotId, SlotKind};

use crate::{Error, Result, expect_frames, expect_readable, expect_writable};

/// A slot with the frames that the host has of it. [`write`](Self::write) and
/// [`read`](Self::read) check what [`Engine`](crate::Engine) promises; an engine adds where the
/// slot lies on its device.
///
/// ```
/// use onesigma_backend::HostSlot;
/// use onesigma_graph::SlotKind;
///
/// let name = "weight".to_owned();
/// let mut slot = HostSlot { name, kind: SlotKind::State, frame_bytes: 4, frames: Vec::new() };
/// // A frame of state belongs on the device: that is the engine's part.
/// assert!(!slot.write(&[1, 2, 3, 4])?);
/// assert!(slot.write(&[1, 2]).is_err());
/// # Ok::<(), onesigma_backend::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct HostSlot {
    /// Its name, for errors.
    pub name: String,
    /// What it is for.
    pub kind: SlotKind,
    /// Bytes of a frame.
    pub frame_bytes: usize,
    /// Of an input, the frames that the host wrote; of an output, those of the last run that wrote
    /// it, where an engine keeps them here.
    pub frames: Vec<u8>,
}

impl HostSlot {
    /// A slot of a program, without frames.
    pub fn new(slot: &Slot) -> Self {
        let (name, kind) = (slot.name.clone(), slot.kind);
        Self { name, kind, frame_bytes: slot.bytes(), frames: Vec::new() }
    }

    /// Number of frames here; a slot without elements always has its one.
    pub fn frame_count(&self) -> usize {
        self.frames.len().checked_div(self.frame_bytes).unwrap_or(1)
    }

    /// The frame that step `step` of a run uses: the only one there is, or its own.
    pub fn frame_of(&self, step: usize) -> usize {
        if self.frame_count() == 1 { 0 } else { step }
    }

    /// Takes what the host writes: keeps the frames of an input and gives `true`. For the frame of a
    /// state, which is fine but has to be put on the device, it gives `false`.
    ///
    /// # Errors
    /// Those of [`expect_writable`].
    #[must_use = "what is not kept here has to be written to the device"]
    pub fn write(&mut self, bytes: &[u8]) -> Result<bool> {
        expect_writable(&self.name, self.kind, self.frame_bytes, bytes.len())?;
        let is_input = self.kind == SlotKind::Input;
        if is_input {
            self.frames.clear();
            self.frames.extend_from_slice(bytes);
        }
        Ok(is_input)
    }

    /// Answers a read: fills `bytes` from the last frames of an input or output, or with zeros for
    /// an output without any, and gives `true`. For a state, which has to be fetched from the
    /// device, it gives `false`.
    ///
    /// # Errors
    /// Those of [`expect_readable`].
    #[must_use = "what is not here has to be read from the device"]
    pub fn read(&self, bytes: &mut [u8]) -> Result<bool> {
        let (frame, held) = (self.frame_bytes, self.frame_count());
        expect_readable(&self.name, self.kind, frame, held, bytes.len())?;
        match self.kind {
            SlotKind::State => return Ok(false),
            // An output that no run has written.
            _ if self.frames.is_empty() => bytes.fill(0),
            _ => bytes.copy_from_slice(&self.frames[self.frames.len() - bytes.len()..]),
        }
        Ok(true)
    }

    /// Whether the frames serve a run of `times` steps.
    ///
    /// # Errors
    /// Those of [`expect_frames`].
    pub fn expect_frames(&self, times: usize) -> Result<()> {
        expect_frames(&self.name, self.frame_count(), times)
    }
}

/// What an engine keeps of a slot, in a list in the program's order.
///
/// # Errors
/// [`Error::UnknownSlot`].
pub fn find_slot<T>(slots: &[T], slot: SlotId) -> Result<&T> {
    let (index, count) = (slot.index(), slots.len());
    slots.get(index).ok_or(Error::UnknownSlot { index, count })
}

/// As [`find_slot`], to be changed.
///
/// # Errors
/// [`Error::UnknownSlot`].
pub fn find_slot_mut<T>(slots: &mut [T], slot: SlotId) -> Result<&mut T> {
    let (index, count) = (slot.index(), slots.len());
    slots.get_mut(index).ok_or(Error::UnknownSlot { index, count })
}

/// What an engine keeps of an entry, in a list in the program's order.
///
/// # Errors
/// [`Error::UnknownEntry`].
pub fn find_entry<T>(entries: &[T], entry: EntryId) -> Result<&T> {
    let (index, count) = (entry.index(), entries.len());
    entries.get(index).ok_or(Error::UnknownEntry { index, count })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(kind: SlotKind, frame_bytes: usize) -> HostSlot {
        HostSlot { name: "slot".to_owned(), kind, frame_bytes, frames: Vec::new() }
    }

    #[test]
    fn frames_of_an_input_serve_one_step_each_or_all() -> Result<()> {
        let mut input = slot(SlotKind::Input, 2);
        assert!(matches!(input.expect_frames(1), Err(Error::MissingFrames { .. })));
        assert!(matches!(input.read(&mut [0; 2]), Err(Error::MissingFrames { .. })));
        assert!(input.write(&[1, 2])?);
        assert_eq!((input.frame_of(0), input.frame_of(5)), (0, 0));
        input.expect_frames(9)?;
        assert!(input.write(&[1, 2, 3, 4, 5, 6])?);
        assert_eq!((input.frame_count(), input.frame_of(2)), (3, 2));
        input.expect_frames(3)?;
        assert!(matches!(input.expect_frames(2), Err(Error::MissingFrames { found: 3, .. })));
        let mut last = [0; 4];
        assert!(input.read(&mut last)?);
        assert_eq!(last, [3, 4, 5, 6]);
        assert!(matches!(input.write(&[1, 2, 3]), Err(Error::WrongSize { .. })));
        assert_eq!(input.frames, [1, 2, 3, 4, 5, 6], "a refused write changes nothing");
        Ok(())
    }

    #[test]
    fn an_output_is_one_frame_of_zeros_until_a_run_writes_it() -> Result<()> {
        let mut output = slot(SlotKind::Output, 2);
        let mut bytes = [7; 2];
        assert!(output.read(&mut bytes)?);
        assert_eq!(bytes, [0, 0]);
        assert!(matches!(output.read(&mut [0; 4]), Err(Error::WrongSize { .. })));
        assert!(matches!(output.write(&[0, 0]), Err(Error::NotWritable { .. })));
        output.frames.extend([1, 2, 3, 4]);
        assert!(output.read(&mut bytes)?);
        assert_eq!(bytes, [3, 4]);
        Ok(())
    }

    #[test]
    fn state_lies_on_the_device() -> Result<()> {
        let mut state = slot(SlotKind::State, 2);
        assert!(!state.write(&[1, 2])?);
        assert!(!state.read(&mut [0; 2])?);
        assert!(state.frames.is_empty());
        assert!(matches!(state.read(&mut [0; 4]), Err(Error::WrongSize { .. })));
        Ok(())
    }

    #[test]
    fn what_is_not_there_is_named() -> Result<()> {
        let mut kept = ["first", "second"];
        assert_eq!(*find_slot(&kept, SlotId::new(1))?, "second");
        *find_slot_mut(&mut kept, SlotId::new(0))? = "new";
        assert_eq!(*find_entry(&kept, EntryId::new(0))?, "new");
        let unknown = find_slot_mut(&mut kept, SlotId::new(2));
        assert!(matches!(unknown, Err(Error::UnknownSlot { index: 2, count: 2 })));
        let unknown = find_entry(&kept, EntryId::new(7));
        assert!(matches!(unknown, Err(Error::UnknownEntry { index: 7, count: 2 })));
        Ok(())
    }

    #[test]
    fn a_slot_without_elements_always_has_its_frame() -> Result<()> {
        let mut empty = slot(SlotKind::Input, 0);
        empty.expect_frames(4)?;
        assert!(empty.read(&mut [])?);
        assert!(empty.write(&[])?);
        assert!(matches!(empty.write(&[1]), Err(Error::WrongSize { .. })));
        Ok(())
    }
}
