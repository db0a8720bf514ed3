//! What formats do to the tensors of a model: before the first step and after some real ones.

mod snapshot;

pub use snapshot::{Snapshot, Start, snapshots};
