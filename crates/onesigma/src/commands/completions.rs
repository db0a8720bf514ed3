//! `onesigma completions`.

use std::io::{self, Write};

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;

use super::Cli;

/// Arguments of `onesigma completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  onesigma completions bash > ~/.local/share/bash-completion/completions/onesigma")]
pub struct Arguments {
    /// The shell
    shell: Shell,
}

/// Prints the script.
pub fn run(arguments: &Arguments) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "onesigma", &mut script);
    io::stdout().write_all(&script)?;
    Ok(())
}
