//! `cargo xtask test`: every test of the default members.

use anyhow::Result;

use crate::process::{self, cargo_with, has_cargo_command};

/// Arguments of `cargo xtask test`.
#[derive(Debug, Default, clap::Args)]
pub struct Arguments {
    /// Use `cargo test` even where cargo-nextest is installed (as on CI).
    #[arg(long)]
    no_nextest: bool,
    /// Passed on, for example `-p onesigma-train` or the name of a test.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Runs unit and behaviour tests, then the documentation's.
pub fn run(arguments: &Arguments) -> Result<()> {
    let rest = &arguments.rest;
    let in_ci = std::env::var_os("CI").is_some();
    if arguments.no_nextest || in_ci || !has_cargo_command("nextest") {
        // Covers documentation tests too.
        return process::run(cargo_with(["test"]).args(rest));
    }
    process::run(cargo_with(["nextest", "run", "--no-tests=pass"]).args(rest))?;
    process::run(cargo_with(["test", "--doc"]).args(rest))
}
