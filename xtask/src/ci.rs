//! `cargo xtask ci`: what a change must pass.

use anyhow::Result;

use crate::process::{self, cargo_with, has_cargo_command};
use crate::test;

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
    process::run(&mut cargo_with(["clippy", "--all-targets", "--", "-D", "warnings"]))?;
    process::run(cargo_with(["doc", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))?;
    if has_cargo_command("deny") {
        process::run(&mut cargo_with(["deny", "check"]))?;
    } else {
        eprintln!("skipped: `cargo deny` is not installed");
    }
    if arguments.lints {
        return Ok(());
    }
    test::run(&test::Arguments::default())
}
