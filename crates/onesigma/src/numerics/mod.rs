//! What formats do to the tensors of a model: before the first step and after some real ones.
//!
//! [`snapshots`] takes steps and measures; [`model`] predicts, measures and puts both side by
//! side in a [`Report`], which is JSON, and [`page`] makes one HTML page of it.

mod page;
mod report;
mod snapshot;

pub use page::page;
pub use report::{
    FormatInfo, FormatLoss, ModelReport, Numbers, Report, Request, SnapshotInfo, TensorReport,
    VERSION, model,
};
pub use snapshot::{Snapshot, Start, snapshots};
