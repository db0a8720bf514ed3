//! `onesigma sweep`.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use onesigma::sweep::runner::{Outcome, Runner};
use onesigma::sweep::{Run, Spec, figure, report};
use onesigma::train::{atomic, run_file};

use super::train::stop_on_interrupt;
use super::{Interrupted, Usage};

/// Arguments of `onesigma sweep`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A sweep file:
  seeds = 2
  metric = \"validation_loss\"           # or best_validation_loss, training_loss,
                                       # validation_accuracy, tokens_per_s
  [settings]                           # of every run, as in a run file
  data = \"my-book.txt\"
  steps = 500
  [grid]                               # each with each
  recipe = [\"f32\", \"unit-fp8\"]
  \"model.hidden\" = [64, 128]
  [random]                             # each draw with each point of the grid
  draws = 8
  [random.keys]
  lr = { log = [0.001, 1.0] }          # or uniform, integer, choice

Runs that are finished are not repeated and killed ones continue: run the same command again.
Results: OUT/sweep.csv, sweep.json and sweep.svg; the runs are in OUT/runs.

Examples:
  onesigma sweep rates.toml
  onesigma sweep rates.toml --set steps=100 --jobs 2 --out sweeps/short
  onesigma sweep rates.toml --report-only")]
pub struct Arguments {
    /// The sweep file
    file: PathBuf,
    /// Folder of runs and results [default: sweeps/NAME of the file]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Runs at a time, each with its share of the cores [default: one for each core]
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Change a setting of every run, such as steps=100; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Seeds of each point, in place of the file's
    #[arg(long, value_name = "N")]
    seeds: Option<u64>,
    /// List the runs that there would be
    #[arg(long)]
    dry_run: bool,
    /// Report on the runs that are there; run nothing
    #[arg(long, conflicts_with = "dry_run")]
    report_only: bool,
}

/// Takes every run that is missing, and reports.
pub fn run(arguments: &Arguments) -> Result<()> {
    let mut spec = Spec::from_file(&arguments.file)?;
    spec.seeds = arguments.seeds.unwrap_or(spec.seeds);
    let mut over = toml::Table::new();
    for setting in &arguments.set {
        run_file::set(&mut over, setting)?;
    }
    let runs = spec.runs(&over, &arguments.file)?;
    let stem = arguments.file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let folder = arguments.out.clone().unwrap_or_else(|| PathBuf::from("sweeps").join(&stem));
    let mut out = io::stdout().lock();
    if arguments.dry_run {
        for run in &runs {
            writeln!(out, "{}  {}", run.id, label(&spec, run))?;
        }
        writeln!(out, "{} runs, to be taken in {}", runs.len(), folder.join("runs").display())?;
        return Ok(());
    }
    let program = std::env::current_exe().context("cannot find this program")?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = arguments.jobs.unwrap_or(cores).clamp(1, runs.len());
    let stop = stop_on_interrupt()?;
    let runs_folder = folder.join("runs");
    let runner = Runner {
        program: (!arguments.report_only).then_some(&program),
        folder: &runs_folder,
        jobs,
        threads: (cores / jobs).max(1),
        metric: spec.metric,
        stop: &stop,
    };
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    let finished = AtomicUsize::new(0);
    let each = |index: usize, outcome: &Outcome, is_old: bool| {
        let number = finished.fetch_add(1, Ordering::Relaxed) + 1;
        if is_old {
            return;
        }
        let found = match outcome {
            Outcome::Done { value, .. } => format!("{value:.4}"),
            Outcome::Diverged => "diverged".into(),
            Outcome::Failed { error } => format!("failed: {error}"),
            Outcome::Open => "open".into(),
        };
        eprintln!("[{number}/{}] {}: {found}", runs.len(), label(&spec, &runs[index]));
    };
    let outcomes = runner.take(&runs, &each);

    let rows = report::rows(&runs, &outcomes);
    let title = spec.title.clone().unwrap_or(stem);
    writeln!(out, "{title}\n\n{}", report::table(&spec, &rows))?;
    let write = |name: &str, text: &str| atomic::write(&folder.join(name), text.as_bytes());
    write("sweep.csv", &report::csv(&spec, &runs, &outcomes))?;
    write("sweep.json", &(report::json(&spec, &runs, &outcomes)? + "\n"))?;
    let mut files = vec!["sweep.csv", "sweep.json"];
    let drawn = figure::svg(&spec, &rows, &title).map_err(anyhow::Error::msg)?;
    if let Some(text) = drawn {
        write("sweep.svg", &text)?;
        files.push("sweep.svg");
    }
    writeln!(out, "{}: {}", folder.display(), files.join(", "))?;
    out.flush()?;
    if stop.load(Ordering::Relaxed) {
        let message = "interrupted; the same command continues the sweep";
        return Err(Interrupted(message.into()).into());
    }
    let failed = outcomes.iter().find_map(|outcome| match outcome {
        Outcome::Failed { error } => Some(error.clone()),
        _ => None,
    });
    match failed {
        Some(error) if outcomes.iter().all(|o| matches!(o, Outcome::Failed { .. })) => {
            Err(Usage(format!("every run failed; the first: {error}")).into())
        }
        Some(error) => anyhow::bail!("runs failed, see the table; the first: {error}"),
        None => Ok(()),
    }
}

/// What a run is called in lines of progress.
fn label(spec: &Spec, run: &Run) -> String {
    let mut words: Vec<String> = spec
        .keys()
        .into_iter()
        .filter_map(|key| Some(format!("{key}={}", run.point.get(key)?)))
        .collect();
    words.push(format!("seed={}", run.seed));
    words.join(" ")
}
