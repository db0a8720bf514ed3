//! Optimisers, schedules, data, checkpoints and the training loop of Onesigma.
//!
//! In the order data flows: a [`corpus::Corpus`] is text with a fixed split; a
//! [`tokenizer::Bytes`] or [`tokenizer::Subwords`] turns it into tokens; [`task`] knows what is to be
//! predicted; [`batch::Sampler`] cuts them into shuffled windows,
//! where a batch is a pure function of seed and step; [`loader::Loader`] does that ahead of time
//! on a thread. [`schedule::Schedule`] gives the learning rate of a step. [`checkpoint`] and
//! [`run_dir::RunDir`] keep what a killed run needs to continue bit for bit. [`telemetry`] tells
//! an [`telemetry::Observer`] what happens: nothing in this crate prints.
// Mapping files of tokens into memory is the one unsafe thing here, see `token_cache`.
#![deny(unsafe_code)]

pub mod atomic;
pub mod batch;
pub mod bert;
pub mod checkpoint;
pub mod config;
pub mod corpus;
mod error;
pub mod generate;
pub mod generator;
pub mod loader;
pub mod memory;
pub mod model;
pub mod numerics;
pub mod optimizer;
pub mod program;
pub mod rates;
pub mod run_dir;
pub mod run_file;
pub mod schedule;
pub mod session;
pub mod task;
pub mod telemetry;
pub mod text;
pub mod token_cache;
pub mod tokenizer;
pub mod tokens;
pub mod trainer;

pub use error::{Error, Result};
