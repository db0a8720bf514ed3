//! Unit-scaled low-precision training, out of the box: the Onesigma library and command line.
//!
//! Each crate of the workspace is a module here; [`backends`] knows which backends are built in,
//! and [`setup`] goes from a configuration to a compiled session; [`numerics`]
//! looks at every tensor of a step.
//!
//! ```
//! use onesigma::{setup, train::config::Config};
//!
//! // The whole training step of the default GPT as one program, before anything runs.
//! let config = Config { recipe: "unit-fp8".into(), ..Config::default() };
//! let planned = setup::program(&config)?;
//! assert!(planned.program.arena_bytes() > 0 && planned.parameter_count > 100_000);
//! # Ok::<(), onesigma::train::Error>(())
//! ```
//!
//! The folder `examples/` of the repository has five programs to start from.
#![forbid(unsafe_code)]

pub use onesigma_backend as backend;
pub use onesigma_format as format;
pub use onesigma_graph as graph;
pub use onesigma_models as models;
pub use onesigma_ops as ops;
pub use onesigma_train as train;

pub mod backends;
mod chart;
#[cfg(feature = "download")]
pub mod download;
pub mod embed;
pub mod numerics;
pub mod setup;
pub mod sweep;

/// The example of the page that goes with the package.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
