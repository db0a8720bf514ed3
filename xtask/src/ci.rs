//! `cargo xtask ci`: what a change must pass.

use anyhow::Result;

use crate::process::{self, cargo_with};
use crate::{matrix, release, test};

/// Arguments of `cargo xtask ci`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Everything but the tests.
    #[arg(long)]
    lints: bool,
}

/// Cheap checks first. Warnings are refused through arguments, not through `RUSTFLAGS`: those
/// would build every dependency once more.
pub fn run(arguments: &Arguments) -> Result<()> {
    process::run(&mut cargo_with(["fmt", "--all", "--check"]))?;
    // Clippy's `incompatible_msrv` holds the standard library that is used against `rust-version`.
    process::run(&mut cargo_with(["clippy", "--all-targets", "--", "-D", "warnings"]))?;
    process::run(cargo_with(["doc", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))?;
    release::msrv()?;
    release::deny()?;
    matrix::run(&matrix::Arguments::default())?;
    if arguments.lints {
        return Ok(());
    }
    test::run(&test::Arguments::default())
}
