//! `cargo xtask ci`: what a change must pass.

use anyhow::Result;

use crate::process::{self, cargo_with};
use crate::{browser, matrix, release, test};

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
    process::run(
        cargo_with(["doc", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings -D rustdoc::all"),
    )?;
    release::msrv()?;
    release::deny()?;
    matrix::run(&matrix::Arguments::default())?;
    pages()?;
    if arguments.lints {
        return Ok(());
    }
    // A minute or two, and skipped where there is no Chromium.
    process::run(&mut cargo_with(["xtask", "browser"]))?;
    test::run(&test::Arguments::default())
}

/// Checks the crates that run in a browser, where the target is installed.
fn pages() -> Result<()> {
    if !browser::has_target() {
        eprintln!("skipped: the target {} is not installed", browser::TARGET);
        return Ok(());
    }
    let crates = ["format", "graph", "models", "backend-wgpu", "browser"];
    let packages =
        crates.iter().flat_map(|name| ["--package".to_owned(), format!("onesigma-{name}")]);
    process::run(cargo_with(["check", "--target", browser::TARGET]).args(packages))
}
