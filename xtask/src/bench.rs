//! `cargo xtask bench`: the criterion benchmarks.

use anyhow::Result;

use crate::process::{self, cargo_with};

/// Arguments of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Passed on to criterion, for example the name of a benchmark.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Runs every benchmark of `benches/`.
pub fn run(arguments: &Arguments) -> Result<()> {
    process::run(cargo_with(["bench", "--package", "onesigma-benches"]).args(&arguments.rest))
}
