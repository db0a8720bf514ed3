//! `cargo xtask test`: every test of the default members.

use anyhow::Result;

use crate::libtorch;
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

/// Members that a plain `cargo test` leaves out, but that build anywhere in a minute or two.
const OPTIONAL: [&str; 3] =
    ["onesigma-backend-candle", "onesigma-backend-wgpu", "onesigma-browser"];

/// Runs unit and behaviour tests, then the documentation's; without further arguments those of the
/// optional backends, too.
///
/// # Errors
/// If a test fails.
pub fn run(arguments: &Arguments) -> Result<()> {
    default_members(arguments)?;
    if arguments.rest.is_empty() {
        for package in OPTIONAL {
            let mut command = cargo_with(["test", "--package", package]);
            // Mesa's layer that chooses a GPU asks Wayland and says that there is none, each time.
            process::run(command.env("NODEVICE_SELECT", "1"))?;
        }
        with_libtorch()?;
    }
    Ok(())
}

/// The backend that builds against libtorch, where libtorch is there or can be fetched.
fn with_libtorch() -> Result<()> {
    let mut command = cargo_with(["test", "--package", "onesigma-backend-tch"]);
    match libtorch::provide(&mut command) {
        Ok(()) => process::run(&mut command),
        Err(reason) => {
            eprintln!(
                "skipped: the tests of onesigma-backend-tch need libtorch 2.11 ({reason}); set \
                 LIBTORCH to its folder, or LIBTORCH_USE_PYTORCH=1 with a Python that has torch \
                 2.11"
            );
            Ok(())
        }
    }
}

fn default_members(arguments: &Arguments) -> Result<()> {
    let rest = &arguments.rest;
    let in_ci = std::env::var_os("CI").is_some();
    if arguments.no_nextest || in_ci || !has_cargo_command("nextest") {
        // Covers documentation tests too.
        return process::run(cargo_with(["test"]).args(rest));
    }
    process::run(cargo_with(["nextest", "run", "--no-tests=pass"]).args(rest))?;
    process::run(cargo_with(["test", "--doc"]).args(rest))
}
