//! The checks of frames that every [`Engine`](crate::Engine) owes.

use onesigma_graph::SlotKind;

use crate::{Error, Result};

/// Whether `found` bytes may be written to the slot `name`, whose frame has `frame` bytes: one frame
/// of a state, one or more of an input.
///
/// # Errors
/// [`Error::NotWritable`], [`Error::WrongSize`].
pub fn expect_writable(name: &str, kind: SlotKind, frame: usize, found: usize) -> Result<()> {
    let fits = match kind {
        SlotKind::Output => return Err(Error::NotWritable { slot: name.to_owned() }),
        SlotKind::State => found == frame,
        SlotKind::Input if frame == 0 => found == 0,
        SlotKind::Input => found > 0 && found.is_multiple_of(frame),
    };
    if fits { Ok(()) } else { Err(Error::WrongSize { slot: name.to_owned(), frame, found }) }
}

/// Whether `found` bytes may be read from the slot `name`, whose frame has `frame` bytes and which
/// holds `held` frames: the frame of a state; the last frames of an input or output, at most as many
/// as there are, where an output that no run has written is one frame.
///
/// # Errors
/// [`Error::MissingFrames`] for an input that was never written, [`Error::WrongSize`].
pub fn expect_readable(
    name: &str,
    kind: SlotKind,
    frame: usize,
    held: usize,
    found: usize,
) -> Result<()> {
    if kind == SlotKind::Input && held == 0 && frame > 0 {
        return Err(Error::MissingFrames { slot: name.to_owned(), found: 0, times: 1 });
    }
    let fits = match kind {
        SlotKind::State => found == frame,
        _ if frame == 0 => found == 0,
        _ => found > 0 && found.is_multiple_of(frame) && found / frame <= held.max(1),
    };
    if fits { Ok(()) } else { Err(Error::WrongSize { slot: name.to_owned(), frame, found }) }
}

/// Whether an input `name` that holds `found` frames serves a run of `times` steps.
///
/// # Errors
/// [`Error::MissingFrames`].
pub fn expect_frames(name: &str, found: usize, times: usize) -> Result<()> {
    if found == 1 || found == times {
        return Ok(());
    }
    Err(Error::MissingFrames { slot: name.to_owned(), found, times })
}
