//! `onesigma train`.

#[cfg(feature = "tui")]
use std::io::IsTerminal;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use onesigma::setup;
use onesigma::train::checkpoint::Checkpoint;
use onesigma::train::config::Config;
use onesigma::train::run_dir::RunDir;
use onesigma::train::session::Flushed;
use onesigma::train::task::{Data, Task};
use onesigma::train::telemetry::tensorboard::TensorBoard;
use onesigma::train::telemetry::{End, Event, Observer};
use onesigma::train::trainer::{Summary, Trainer};
use onesigma::train::{Error, atomic};

use super::prepare::{Prepared, TOKENIZER, prepare, prepare_with};
use super::settings::Settings;
use super::{Interrupted, dry_run, profile};
use crate::progress::Progress;
#[cfg(feature = "tui")]
use crate::{
    logs,
    tui::{Dashboard, Tui},
};

/// Arguments of `onesigma train`.
#[derive(Debug, clap::Args)]
#[command(
    args_override_self = true,
    after_help = "\
Examples:
  onesigma train --recipe unit-fp8 --out runs/first
  onesigma train run.toml --set model.hidden=256 --seed 3 --dry-run
  onesigma train --data my-book.txt --layers 6 --hidden 256 --steps 5000 --clip 1 --out runs/book
  onesigma train --resume runs/book
  onesigma train --resume runs/book --steps 10000
  onesigma train --model-type bert --data my-books --steps 5000 --out runs/bert
  onesigma train --model-type bert --task classification --data sst2 --init-from runs/bert
  onesigma train runs/book/config.toml --recipe f32 --out runs/book-f32
  onesigma train --steps 20 --profile trace.json

An interrupt (Ctrl-C) or a termination signal ends the run after the current steps, with a
checkpoint; a second one ends it at once."
)]
pub struct Arguments {
    #[command(flatten)]
    settings: Settings,
    /// Run folder to make [default: runs/RECIPE-N, the first N that is free]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Continue the run in this folder; --steps makes it longer, and evaluations, checkpoints and
    /// samples may be others than before
    #[arg(long, value_name = "DIR", conflicts_with = "out")]
    resume: Option<PathBuf>,
    /// Show plan, memory, predicted numerics and cost, and how long a step takes: a few are taken
    /// and thrown away; nothing is written
    #[arg(long, conflicts_with = "resume")]
    dry_run: bool,
    /// At the end, count the gradients that the recipe's formats flush to zero
    #[arg(long)]
    measure_gradients: bool,
    /// Record where the time of some steps goes, op by op: print the table at the end and write the
    /// trace to a file, JSON for Perfetto. Losses stay the same; those steps take a little longer
    #[arg(long, value_name = "FILE", conflicts_with = "dry_run")]
    profile: Option<PathBuf>,
    /// Steps that --profile records, after a few that warm up
    #[arg(
        long,
        value_name = "STEPS",
        default_value_t = 10,
        requires = "profile",
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    profile_steps: u64,
    /// No progress bar
    #[arg(long, short)]
    quiet: bool,
    /// Live charts on the whole terminal; plain lines where there is none
    #[cfg(feature = "tui")]
    #[arg(long, conflicts_with = "quiet")]
    tui: bool,
}

/// Trains, and leaves a run folder.
pub fn run(arguments: &Arguments) -> Result<()> {
    if arguments.dry_run {
        let settings = &arguments.settings;
        let is_seq_open = settings.is_seq_open()?;
        let Prepared { config, data, .. } = prepare_with(settings.config()?, None, is_seq_open)?;
        return dry_run::report(&mut io::stdout().lock(), &config, data);
    }
    let mut observers: Vec<Box<dyn Observer>> = vec![Box::new(Progress::new(arguments.quiet))];
    let Started { config, mut trainer, mut run } = match &arguments.resume {
        Some(root) => resume(root, &arguments.settings, &mut observers)?,
        None => start(arguments)?,
    };
    if config.tensorboard {
        let settings = toml::to_string(&config)?;
        observers.push(Box::new(TensorBoard::create(&run.root().join(EVENTS), &settings)?));
    }
    if let Some(path) = &arguments.profile {
        profile::can_record(trainer.record(arguments.profile_steps))?;
        // Now rather than after the run.
        atomic::write(path, b"")?;
    }
    let stop = stop_on_interrupt()?;
    #[cfg(feature = "tui")]
    if arguments.tui {
        dashboard(&config, run.root(), &stop, &mut observers)?;
    }
    let summary = trainer.run(&mut run, &mut observers, &stop);
    // The terminal is given back before anything is printed.
    drop(observers);
    let mut summary = summary.with_context(|| format!("in {}", run.root().display()))?;
    if arguments.measure_gradients {
        let batch = trainer.batch(trainer.steps_done());
        let state = trainer.checkpoint()?.tensors;
        summary.flushed_gradients = share(&setup::measure(&config, &state, &batch)?);
    }
    let text = serde_json::to_string_pretty(&summary)? + "\n";
    atomic::write(&run.root().join("summary.json"), text.as_bytes())?;
    let mut out = io::stdout().lock();
    if let (Some(path), Some((spans, steps))) = (&arguments.profile, trainer.recorded()) {
        let backend = onesigma::backends::open(&config.backend)?;
        writeln!(out, "time of {steps} steps, op by op:")?;
        profile::end(&mut out, &trainer.session().program().program, &spans, &*backend, path)?;
    }
    report(&mut out, &summary, &config, run.root())
}

/// Puts a dashboard in place of the progress bar, if there is a terminal; logs go to the run folder
/// meanwhile.
#[cfg(feature = "tui")]
fn dashboard(
    config: &Config,
    root: &Path,
    stop: &Arc<AtomicBool>,
    observers: &mut [Box<dyn Observer>],
) -> Result<()> {
    if !io::stdout().is_terminal() {
        eprintln!("there is no terminal for `--tui`: plain lines follow");
        return Ok(());
    }
    logs::send_to(Some(&root.join("train.log"))).context("cannot write train.log")?;
    let Config { recipe, backend, .. } = config;
    let title = format!("{recipe} on {backend}: {}", root.display());
    let tui = Tui::start(Dashboard::new(title), Arc::clone(stop)).context("no terminal")?;
    observers[0] = Box::new(tui);
    Ok(())
}

/// Folder of a run folder that holds the event files.
const EVENTS: &str = "tensorboard";

/// A run that is about to take steps.
struct Started {
    config: Config,
    trainer: Trainer,
    run: RunDir,
}

fn start(arguments: &Arguments) -> Result<Started> {
    #[cfg_attr(not(feature = "tui"), allow(unused_mut))]
    let mut config = arguments.settings.config()?;
    #[cfg(feature = "tui")]
    if arguments.tui && config.sample_every == 0 && config.task() == Task::LanguageModel {
        // There is room to look at text.
        config.sample_every = config.eval_every;
    }
    let root = arguments.out.clone().unwrap_or_else(|| free_folder(&config.recipe));
    if root.join("config.toml").exists() {
        return Err(Error::RunExists { path: root }.into());
    }
    // The text first: it is what is most often wrong, and reading it is cheap.
    let is_seq_open = arguments.settings.is_seq_open()?;
    let Prepared { config, data, pieces, weights } = prepare_with(config, None, is_seq_open)?;
    let mut trainer = trainer(&config, data)?;
    if let Some(weights) = weights {
        weights.load(trainer.session())?;
    }
    if let Some(pieces) = &pieces {
        std::fs::create_dir_all(&root).with_context(|| root.display().to_string())?;
        pieces.save(&root.join(TOKENIZER))?;
    }
    let trainer = writing(trainer.with_tokenizer(pieces.into()), &config)?;
    let run = RunDir::create(&root, &config)?;
    Ok(Started { config, trainer, run })
}

/// The run in `root` at its newest whole checkpoint, or at its start if it has none yet.
fn resume(root: &Path, settings: &Settings, observer: &mut dyn Observer) -> Result<Started> {
    let own: Config = RunDir::config(root)?;
    let continued = settings.continued(&own)?;
    let is_changed = continued != own;
    let Prepared { config, data, weights, pieces } = prepare(continued, Some(root))?;
    let mut trainer = trainer(&config, data)?;
    match Checkpoint::latest(&root.join("checkpoints")) {
        Ok((path, checkpoint, warnings)) => {
            for warning in warnings {
                observer.event(&Event::Warning(warning));
            }
            trainer.restore(&checkpoint).with_context(|| path.display().to_string())?;
        }
        Err(Error::CheckpointMissing { .. }) => {
            if let Some(weights) = weights {
                weights.load(trainer.session())?;
            }
            observer.event(&Event::Warning("no whole checkpoint yet: starting over".into()));
        }
        Err(error) => return Err(error.into()),
    }
    let run = RunDir::resume(root, trainer.steps_done())?;
    if is_changed {
        run.rewrite_config(&config)?;
    }
    let trainer = writing(trainer.with_tokenizer(pieces.into()), &config)?;
    Ok(Started { config, trainer, run })
}

/// The trainer with what writes samples fast, if there will be any and memory is not limited: it has
/// parameters of its own.
fn writing(mut trainer: Trainer, config: &Config) -> Result<Trainer> {
    let is_asked = config.sample_every > 0 && config.task() == Task::LanguageModel;
    if !is_asked || config.memory.is_some() {
        return Ok(trainer);
    }
    let values = trainer.session().parameters()?;
    Ok(trainer.with_generator(setup::generator(config, &values)?))
}

fn trainer(config: &Config, data: Data) -> Result<Trainer> {
    let session = setup::session(config)?;
    Ok(Trainer::with_data(session, config, setup::default_rate(config)?, data)?)
}

/// `runs/RECIPE-N` with the first `N` that is free.
fn free_folder(recipe: &str) -> PathBuf {
    let folder = |n: u32| Path::new("runs").join(format!("{recipe}-{n}"));
    (1..u32::MAX).map(folder).find(|path| !path.exists()).unwrap_or_else(|| folder(0))
}

/// A flag that the first interrupt sets; the second ends the process at once.
pub fn stop_on_interrupt() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("stopping after this block of steps; once more to stop at once");
    })
    .context("cannot listen for interrupts")?;
    Ok(stop)
}

/// Flushed elements as a share of those that are not zero; none if there are none.
fn share(tensors: &[Flushed]) -> Option<f64> {
    let nonzero: f64 = tensors.iter().map(|tensor| tensor.nonzero).sum();
    let flushed: f64 = tensors.iter().map(|tensor| tensor.flushed).sum();
    (nonzero > 0.0).then(|| flushed / nonzero)
}

fn report(out: &mut impl Write, summary: &Summary, config: &Config, root: &Path) -> Result<()> {
    let mebibytes = |bytes: f64| bytes / f64::from(1 << 20);
    // A run that was resumed at its end took no step.
    let speed = match summary.tokens_per_s {
        speed if speed > 0.0 => format!(" {speed:.0} tokens/s,"),
        _ => String::new(),
    };
    writeln!(
        out,
        "{}: {} steps, validation loss {:.4},{speed} planned memory {:.1} MiB",
        summary.recipe,
        summary.steps,
        summary.validation_loss,
        mebibytes(summary.arena_bytes as f64),
    )?;
    if let Some(accuracy) = summary.validation_accuracy {
        writeln!(out, "validation accuracy {:.2} %", 100.0 * accuracy)?;
    }
    if let Some(share) = summary.flushed_gradients {
        writeln!(out, "gradients flushed to zero: {:.3} %", 100.0 * share)?;
    }
    if let Some((step, loss)) = summary.best {
        let kept = if config.keep_best { ", kept as checkpoints/best.safetensors" } else { "" };
        writeln!(out, "lowest validation loss {loss:.4} after step {step}{kept}")?;
    }
    if summary.end == End::EarlyStop {
        let (patience, total) = (config.patience, config.steps);
        writeln!(out, "ended before step {total}: no lower loss in {patience} evaluations")?;
    }
    writeln!(out, "run folder: {}", root.display())?;
    if summary.end == End::Interrupted {
        out.flush()?;
        return Err(anyhow::Error::new(Interrupted(format!(
            "interrupted after {} of {} steps, and saved; continue with: onesigma train --resume {}",
            summary.steps,
            config.steps,
            root.display()
        ))));
    }
    Ok(())
}
