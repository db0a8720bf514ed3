//! Unit-scaled low-precision training, out of the box: the Onesigma library and command line.
//!
//! Each crate of the workspace is a module here; [`backends`] knows which backends are built in,
//! and [`setup`] goes from a configuration to a compiled session; [`numerics`]
//! looks at every tensor of a step.
#![forbid(unsafe_code)]

pub use onesigma_backend as backend;
pub use onesigma_format as format;
pub use onesigma_graph as graph;
pub use onesigma_models as models;
pub use onesigma_ops as ops;
pub use onesigma_train as train;

pub mod backends;
#[cfg(feature = "download")]
pub mod download;
pub mod embed;
pub mod numerics;
pub mod setup;
pub mod sweep;
