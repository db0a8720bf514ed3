//! `cargo xtask coverage`: which lines the tests run.

use anyhow::Result;

use crate::process::{self, cargo_with, has_cargo_command};
use crate::release::skip;

/// Arguments of `cargo xtask coverage`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Write a page for each file to target/llvm-cov/html as well
    #[arg(long)]
    html: bool,
    /// Passed on to `cargo test`, for example `-p onesigma-format`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Runs the tests with instrumented code and prints the share of lines by file.
pub fn run(arguments: &Arguments) -> Result<()> {
    if !has_cargo_command("llvm-cov") {
        return skip(
            "cargo llvm-cov",
            "cargo install cargo-llvm-cov --locked && rustup component add llvm-tools",
        );
    }
    let mut test = cargo_with(["llvm-cov", "--no-report", "test"]);
    process::run(test.args(&arguments.rest))?;
    process::run(&mut cargo_with(["llvm-cov", "report", "--summary-only"]))?;
    if arguments.html {
        process::run(&mut cargo_with(["llvm-cov", "report", "--html"]))?;
    }
    Ok(())
}
