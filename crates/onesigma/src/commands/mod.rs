//! The commands, one file each.

use clap::{Parser, Subcommand};

mod backends;
mod compile;
mod completions;
mod convert;
mod data;
mod dry_run;
mod embed;
mod eval;
mod formats;
mod generate;
mod model;
mod numerics;
mod prepare;
mod profile;
mod rules;
mod run;
mod settings;
mod source;
mod sweep;
mod text;
mod train;

/// Train neural networks in FP8 and FP16 without loss scales: every tensor is kept at unit
/// variance by scales that are known when the program is compiled.
#[derive(Debug, Parser)]
#[command(name = "onesigma", version, propagate_version = true, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Say what happens within, on standard error; twice or thrice for more
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Logging")]
    pub verbose: u8,
}

const EXAMPLES: &str = "\
Examples:
  onesigma train --recipe unit-fp8 --out runs/first
  onesigma train --data my-book.txt --steps 2000 --out runs/book
  onesigma train --resume runs/book
  onesigma train run.toml --set model.hidden=256 --dry-run
  onesigma sweep rates.toml
  onesigma data wikitext103
  onesigma eval runs/book
  onesigma generate runs/book --prompt 'Once upon'

The book (docs/) has more. ONESIGMA_LOG=onesigma_train=debug chooses what -v shows, by crate.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a GPT or a BERT, or continue a run
    Train(train::Arguments),
    /// Train over a grid of settings or random ones, in processes of their own
    Sweep(sweep::Arguments),
    /// Look at data, tokenise it, download it
    Data(data::Arguments),
    /// Measure the validation loss of a run
    Eval(eval::Arguments),
    /// Continue a text with a trained model
    Generate(generate::Arguments),
    /// Print embeddings of texts and their cosines, by a BERT
    Embed(embed::Arguments),
    /// Rewrite a model as a Hugging Face folder, in another parametrisation or format
    Convert(convert::Arguments),
    /// Print the plan of a training program without running it
    Compile(compile::Arguments),
    /// Run an entry of a program file
    Run(run::Arguments),
    /// List the number formats, print code tables, convert raw files
    Formats(formats::Arguments),
    /// List the unit-scaling rules with their scales for given sizes
    Rules(rules::Arguments),
    /// Predict and measure what formats do to every tensor of a model
    Numerics(numerics::Arguments),
    /// List the backends that are built in and the devices they see
    Backends(backends::Arguments),
    /// Print a completion script for a shell
    Completions(completions::Arguments),
}

/// A request that cannot be met as it was given: exit code 2.
#[derive(Debug)]
pub struct Usage(pub String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// A run that was interrupted and has saved its state: exit code 130, as the shell counts signals.
#[derive(Debug)]
pub struct Interrupted(pub String);

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Interrupted {}

/// Does what the command line asks.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Train(arguments) => train::run(&arguments),
        Command::Sweep(arguments) => sweep::run(&arguments),
        Command::Data(arguments) => data::run(&arguments),
        Command::Eval(arguments) => eval::run(&arguments),
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Embed(arguments) => embed::run(&arguments),
        Command::Convert(arguments) => convert::run(&arguments),
        Command::Compile(arguments) => compile::run(&arguments),
        Command::Run(arguments) => run::run(&arguments),
        Command::Formats(arguments) => formats::run(&arguments),
        Command::Rules(arguments) => rules::run(&arguments),
        Command::Numerics(arguments) => numerics::run(&arguments),
        Command::Backends(arguments) => backends::run(&arguments),
        Command::Completions(arguments) => completions::run(&arguments),
    }
}
