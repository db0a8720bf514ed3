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
    process::run(
        cargo_with(["doc", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings -D rustdoc::all"),
    )?;
    release::msrv()?;
    release::deny()?;
    matrix::run(&matrix::Arguments::default())?;
    browser()?;
    if arguments.lints {
        return Ok(());
    }
    test::run(&test::Arguments::default())
}

/// Checks the crates that run in a browser, where the target is installed.
fn browser() -> Result<()> {
    const TARGET: &str = "wasm32-unknown-unknown";
    let mut rustc = std::process::Command::new("rustc");
    let found = rustc.args(["--print", "target-libdir", "--target", TARGET]).output();
    let folder = found.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    if !folder.is_ok_and(|folder| std::path::Path::new(&folder).is_dir()) {
        eprintln!("skipped: the target {TARGET} is not installed");
        return Ok(());
    }
    let crates = ["format", "graph", "models", "backend-wgpu", "browser"];
    let packages =
        crates.iter().flat_map(|name| ["--package".to_owned(), format!("onesigma-{name}")]);
    process::run(cargo_with(["check", "--target", TARGET]).args(packages))
}
