//! The Onesigma command line.
#![forbid(unsafe_code)]
#![allow(clippy::print_stderr)]

use std::io;
use std::process::ExitCode;

use clap::Parser;

mod commands;
mod logs;
mod progress;
#[cfg(feature = "tui")]
mod tui;

/// Exit code of a request that cannot be met as it was given; clap uses it too.
const USAGE: u8 = 2;
/// Exit code of a run that was interrupted and has saved its state.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let cli = commands::Cli::parse();
    logs::start(cli.verbose);
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of our output has gone, for example `head`: it has what it wanted.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) if error.is::<commands::Interrupted>() => {
            eprintln!("{error}");
            ExitCode::from(INTERRUPTED)
        }
        Err(error) => {
            eprintln!("error: {}", words(&error));
            if is_usage(&error) { ExitCode::from(USAGE) } else { ExitCode::FAILURE }
        }
    }
}

/// The error and its causes, without those that an error before them has told already.
fn words(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if !text.ends_with(&cause) {
            if !text.is_empty() {
                text += ": ";
            }
            text += &cause;
        }
    }
    text
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|io| io.kind() == io::ErrorKind::BrokenPipe)
    })
}

fn is_usage(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<onesigma::train::Error>().is_some_and(|error| error.is_usage())
            || cause.is::<commands::Usage>()
    })
}
