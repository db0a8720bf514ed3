//! `onesigma eval`.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Result;
use onesigma::setup;
use onesigma::train::batch::{Sampler, Sweep};
use onesigma::train::tokenizer::Bytes;

use super::source;

/// Arguments of `onesigma eval`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  onesigma eval runs/first
  onesigma eval runs/first --data other-text.txt --batches 100
  onesigma eval runs/first --gradients")]
pub struct Arguments {
    /// A run folder, or a checkpoint file
    run: PathBuf,
    /// Another text; its validation split is measured [default: the run's own]
    #[arg(long, value_name = "FILE|DIR")]
    data: Option<String>,
    /// Batches to measure; as many as there are at most [default: all]
    #[arg(long)]
    batches: Option<usize>,
    /// List the gradients that the recipe's formats flush to zero, tensor by tensor
    #[arg(long)]
    gradients: bool,
}

/// Measures and prints the loss.
pub fn run(arguments: &Arguments) -> Result<()> {
    let checkpoint = source::checkpoint(&arguments.run)?;
    let config = source::config(&checkpoint)?;
    let corpus = match &arguments.data {
        Some(data) => source::corpus(data, None)?,
        None => source::corpus(&config.data, config.valid.as_deref())?,
    };
    let mut out = io::stdout().lock();
    let (batch, seq) = (config.batch, config.model.seq);
    if arguments.gradients {
        let tokens = Bytes.encode(&corpus.training).into();
        let mut sampler = Sampler::new(tokens, "training", batch, seq, config.seed)?;
        let first = checkpoint.state.step * config.accumulate as u64;
        let batch = sampler.batch(first);
        let tensors = setup::measure(&config, &checkpoint.tensors, &batch)?;
        writeln!(out, "{:>10}  {:>12}  {:<8}  tensor", "flushed", "of", "format")?;
        for tensor in tensors {
            let share = 100.0 * tensor.flushed / tensor.nonzero.max(1.0);
            let (count, format) = (tensor.nonzero, &tensor.format);
            writeln!(out, "{share:>8.3} %  {count:>12}  {format:<8}  {}", tensor.name)?;
        }
        return Ok(());
    }
    let tokens = Bytes.encode(&corpus.validation).into();
    let batches = arguments.batches.unwrap_or(usize::MAX);
    let sweep = Sweep::new(tokens, "validation", batch, seq, batches)?;
    let mut session = source::session(&config, &checkpoint)?;
    let loss = session.evaluate((0..sweep.len()).map(|index| sweep.batch(index)))?;
    writeln!(
        out,
        "step {}: validation loss {loss:.4} nats per byte, {:.4} bits per byte, over {} tokens",
        checkpoint.state.step,
        loss / std::f32::consts::LN_2,
        sweep.len() * batch * seq,
    )?;
    Ok(())
}
