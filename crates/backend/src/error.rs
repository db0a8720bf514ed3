//! The error type that all backends share.

/// What can go wrong while a program is compiled or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The hardware or its library is not on this machine. Tests skip visibly on this one.
    #[error("backend `{backend}` is not available: {reason}")]
    Unavailable {
        /// Name of the backend.
        backend: String,
        /// What is missing and how to get it.
        reason: String,
    },
    /// The backend cannot run an op with these element types.
    #[error("backend `{backend}` cannot run {op} (`{node}`) with {types}")]
    Unsupported {
        /// Name of the backend.
        backend: String,
        /// Name of the op.
        op: &'static str,
        /// Name of the node.
        node: String,
        /// Element types of operands and result.
        types: String,
    },
    /// The program does not fit the device.
    #[error(
        "the program needs {needed} bytes, {available} are available; use a smaller batch or model"
    )]
    OutOfMemory {
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that there are.
        available: u64,
    },
    /// A slot was written or read with a wrong number of bytes.
    #[error("slot `{slot}` has frames of {frame} bytes, but {found} bytes were given")]
    WrongSize {
        /// Name of the slot.
        slot: String,
        /// Bytes of one frame.
        frame: usize,
        /// Bytes that were given.
        found: usize,
    },
    /// The host wrote a slot that only entries write.
    #[error("slot `{slot}` is an output; only entries write it")]
    NotWritable {
        /// Name of the slot.
        slot: String,
    },
    /// An input has a number of frames that does not fit the run.
    #[error("input `{slot}` holds {found} frames, a run of {times} steps needs 1 or {times}")]
    MissingFrames {
        /// Name of the slot.
        slot: String,
        /// Frames it holds.
        found: usize,
        /// Steps of the run.
        times: usize,
    },
    /// The slot id is not of this program.
    #[error("slot {index} does not exist, the program has {count}")]
    UnknownSlot {
        /// The index that was given.
        index: usize,
        /// The number of slots.
        count: usize,
    },
    /// The entry id is not of this program.
    #[error("entry {index} does not exist, the program has {count}")]
    UnknownEntry {
        /// The index that was given.
        index: usize,
        /// The number of entries.
        count: usize,
    },
    /// The program is malformed.
    #[error(transparent)]
    Graph(#[from] onesigma_graph::Error),
    /// The device or its library failed.
    #[error("backend `{backend}` failed: {reason}")]
    Device {
        /// Name of the backend.
        backend: String,
        /// What it said.
        reason: String,
    },
}

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
