//! `onesigma eval`.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Result;
use onesigma::setup;
use onesigma::train::Error;
use onesigma::train::config::Config;
use onesigma::train::session::Evaluation;

use super::model;
use super::prepare::{Prepared, prepare};

/// Arguments of `onesigma eval`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  onesigma eval runs/first
  onesigma eval runs/first --data other-text.txt --batches 100
  onesigma eval runs/first --backend cpu
  onesigma eval runs/first --gradients")]
pub struct Arguments {
    /// A run folder, a checkpoint file, or a Hugging Face folder
    run: PathBuf,
    /// Another text; its validation split is measured [default: the run's own]
    #[arg(long, value_name = "FILE|DIR")]
    data: Option<String>,
    /// Batches to measure; as many as there are at most [default: all]
    #[arg(long)]
    batches: Option<usize>,
    /// Where to run, by the names of `onesigma backends` [default: where the run was]
    #[arg(long)]
    backend: Option<String>,
    /// List the gradients that the recipe's formats flush to zero, tensor by tensor
    #[arg(long)]
    gradients: bool,
}

/// Measures and prints the loss, and the accuracy of a task that has one.
pub fn run(arguments: &Arguments) -> Result<()> {
    let opened = model::open(&arguments.run, None)?;
    if arguments.data.is_none() && opened.step.is_none() {
        return Err(Error::Setting {
            name: "--data",
            given: "nothing".into(),
            expected: "a text or examples: a Hugging Face folder does not name its own".into(),
        }
        .into());
    }
    let batches = arguments.batches.unwrap_or(1 << 24);
    let mut config = Config { eval_batches: batches, ..opened.config.clone() };
    if let Some(backend) = &arguments.backend {
        config.backend.clone_from(backend);
    }
    if let Some(data) = &arguments.data {
        config.data.clone_from(data);
        config.valid = None;
    }
    // The weights are those of the run, not of what it started from.
    let run = Config { init_from: None, ..config.clone() };
    let Prepared { mut data, pieces, .. } = prepare(run, Some(&arguments.run))?;
    let mut out = io::stdout().lock();
    if arguments.gradients {
        let first = opened.step.unwrap_or(0) * config.accumulate as u64;
        let batch = data.training.batch(first);
        let tensors = setup::measure(&config, &opened.session(&config)?.state()?, &batch)?;
        writeln!(out, "{:>10}  {:>12}  {:<8}  tensor", "flushed", "of", "format")?;
        for tensor in tensors {
            let share = 100.0 * tensor.flushed / tensor.nonzero.max(1.0);
            let (count, format) = (tensor.nonzero, &tensor.format);
            writeln!(out, "{share:>8.3} %  {count:>12}  {format:<8}  {}", tensor.name)?;
        }
        return Ok(());
    }
    let mut session = opened.session(&config)?;
    let count = data.validation.count();
    let batches = (0..count).map(|index| data.validation.batch(index));
    let Evaluation { loss, accuracy } = session.measure(batches)?;
    let step = opened.step.map_or(String::new(), |step| format!("step {step}: "));
    match accuracy {
        Some(accuracy) => {
            let accuracy = 100.0 * accuracy;
            let task = config.task().name();
            writeln!(out, "{step}{task}, validation loss {loss:.4}, accuracy {accuracy:.2} %")?;
        }
        None => {
            let unit = if pieces.is_some() { "token" } else { "byte" };
            writeln!(
                out,
                "{step}validation loss {loss:.4} nats per {unit}, {:.4} bits per {unit}, over \
                 {} tokens",
                loss / std::f32::consts::LN_2,
                count * config.batch * config.model.seq,
            )?;
        }
    }
    Ok(())
}
