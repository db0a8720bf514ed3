//! `cargo xtask formats …`: exhaustive check, speed and pictures of the number formats.

mod exhaustive;
mod pictures;
mod speed;

use anyhow::Result;

/// Arguments of `cargo xtask formats`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Compare the bulk codecs with the scalar reference on every f32 and every code.
    Exhaustive(exhaustive::Arguments),
    /// Measure the codecs against a copy of the same bytes.
    Speed(speed::Arguments),
    /// Draw the pictures of the formats chapter.
    Pictures(pictures::Arguments),
}

/// Runs `cargo xtask formats`.
///
/// # Errors
/// When a codec disagrees with the reference, or a result cannot be written.
pub fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.command {
        Command::Exhaustive(arguments) => exhaustive::run(arguments),
        Command::Speed(arguments) => speed::run(arguments),
        Command::Pictures(arguments) => pictures::run(arguments),
    }
}
