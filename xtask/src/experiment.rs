//! `cargo xtask experiment`: the claims of the unit-scaling papers, measured at small size.
//!
//! Each experiment is a file `experiments/NAME.toml` ([`config`]). It expands into runs of the
//! release build of `onesigma` ([`grid`]), which are taken one by one and can be killed at any
//! time ([`runner`]); learning rates are searched first where the experiment asks for it
//! ([`tune`]). Table, figure and verdicts on the claims go to `docs/results/experiments/`
//! ([`report`]).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::process::{self, root};
use config::{Experiment, Mode};
use data::DataFolder;
use grid::{Run, Source};
use report::Report;
use runner::Runner;
pub use runner::training_losses;

mod claims;
mod config;
mod data;
mod figure;
mod grid;
mod numerics;
mod report;
mod runner;
// What `onesigma sweep` does as well, without its dependencies.
#[path = "../../crates/train/src/run_file/settings.rs"]
mod settings;
mod statistics;
mod tune;
#[path = "../../crates/onesigma/src/sweep/workers.rs"]
mod workers;

/// Arguments of `cargo xtask experiment`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask experiment --list
  cargo xtask experiment char-lm --quick --data ~/texts
  cargo xtask experiment --report-only char-lm

A run that is finished is not repeated and one that was killed continues; remove
target/experiments/NAME to start over.")]
pub struct Arguments {
    /// Experiments to run [default: all of them]
    names: Vec<String>,
    /// The small size: under ten minutes each on two quiet cores
    #[arg(long)]
    quick: bool,
    /// Show what there is, and how much of it has been run
    #[arg(long)]
    list: bool,
    /// Seeds of each point, in place of the experiment's own number
    #[arg(long, value_name = "N")]
    seeds: Option<u64>,
    /// Runs at the same time, each with its share of the cores [default: one for each core]
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Folder of the texts: `corpus/`, `finetune/`
    #[arg(long, value_name = "DIR", default_value = "target/data")]
    data: PathBuf,
    /// The program to run, on a machine that cannot build it [default: the release build]
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Commit of that program, for the record
    #[arg(long, value_name = "HASH", requires = "binary")]
    commit: Option<String>,
    /// Report on the runs that are there; run nothing
    #[arg(long)]
    report_only: bool,
    /// Folder of the runs
    #[arg(long, value_name = "DIR", default_value = "target/experiments")]
    out: PathBuf,
}

/// Runs and reports the experiments that are asked for.
pub fn run(arguments: &Arguments) -> Result<()> {
    let mode = if arguments.quick { Mode::Quick } else { Mode::Full };
    let mut all = config::all(&root())?;
    for experiment in &mut all {
        experiment.override_seeds(mode, arguments.seeds);
    }
    let experiments = select(&all, &arguments.names)?;
    let out = root().join(&arguments.out);
    if arguments.list {
        return list(&experiments, &out);
    }
    let data = DataFolder::new(&root().join(&arguments.data));
    if !arguments.report_only {
        for experiment in &experiments {
            data.check(experiment)?;
            if let Some(before) = &experiment.from {
                let before = select(&all, std::slice::from_ref(before))?;
                before.into_iter().try_for_each(|before| data.check(before))?;
            }
        }
    }
    let binary = match (arguments.report_only, &arguments.binary) {
        (true, _) => None,
        (false, Some(binary)) => Some(copy(binary, &out)?),
        (false, None) => Some(copy(&process::release_binary("onesigma")?, &out)?),
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = arguments.jobs.unwrap_or(cores).max(1);
    let runner = Runner {
        binary: binary.as_deref(),
        data: &data,
        out: &out,
        mode,
        threads: (cores / jobs).max(1),
        commit: arguments.commit.clone().unwrap_or_else(report::commit),
    };
    for experiment in &experiments {
        let started = Instant::now();
        println!("{}: {} ({})", experiment.name, experiment.title, mode.name());
        take(experiment, &all, &runner, jobs)?;
        println!("{}: took {:.0} s\n", experiment.name, started.elapsed().as_secs_f64());
    }
    if let Some(copy) = binary {
        fs::remove_file(&copy).with_context(|| format!("cannot remove {}", copy.display()))?;
    }
    Ok(())
}

/// A copy of the program in `out`, so that building another one meanwhile changes no run.
fn copy(binary: &Path, out: &Path) -> Result<PathBuf> {
    let copy = out.join(format!("onesigma-{}", std::process::id()));
    fs::create_dir_all(out).with_context(|| format!("no {}", out.display()))?;
    fs::copy(binary, &copy).with_context(|| format!("cannot write {}", copy.display()))?;
    Ok(copy)
}

/// Searches rates, takes every run that is missing, and reports; gives the runs. An experiment that
/// this one starts from is taken first.
fn take(
    experiment: &Experiment,
    all: &[Experiment],
    runner: &Runner<'_>,
    jobs: usize,
) -> Result<Vec<Run>> {
    let mode = runner.mode;
    let source = match &experiment.from {
        None => None,
        Some(name) => {
            let before = select(all, std::slice::from_ref(name))?;
            let before = before.first().with_context(|| format!("no experiment `{name}`"))?;
            let runs = take(before, all, runner, jobs)?;
            Some(Source { experiment: name.clone(), runs })
        }
    };
    let source = source.as_ref();
    let mut points = experiment.points(mode)?;
    let tuned = tune::rates(experiment, mode, &points, source, runner, jobs)?;
    tune::apply(experiment, &tuned, &mut points)?;
    let runs = grid::runs(experiment, mode, &points, source)?;
    let results = workers::parallel(jobs, runs.clone(), |run| runner.result(&run, experiment))?;
    let results: Vec<_> = results.into_iter().flatten().collect();
    let report = Report::new(experiment, mode, &points, tuned, results, runs.len());
    report.write(&root(), &runner.folder(&experiment.name))?;
    Ok(runs)
}

/// The experiments with the given names, or all.
fn select<'a>(all: &'a [Experiment], names: &[String]) -> Result<Vec<&'a Experiment>> {
    for name in names {
        if !all.iter().any(|experiment| experiment.name == *name) {
            let known: Vec<_> = all.iter().map(|experiment| &experiment.name[..]).collect();
            bail!("no experiment `{name}`, expected some of: {}", known.join(", "));
        }
    }
    let wanted = |one: &&Experiment| names.is_empty() || names.contains(&one.name);
    Ok(all.iter().filter(wanted).collect())
}

fn list(experiments: &[&Experiment], out: &Path) -> Result<()> {
    for experiment in experiments {
        println!("{}: {}", experiment.name, experiment.title);
        for mode in [Mode::Quick, Mode::Full] {
            let points = experiment.points(mode)?;
            let seeds = experiment.size(mode).seeds;
            let folder = out.join(&experiment.name).join(mode.name()).join("runs");
            let done = match folder.exists() {
                true => runner::finished(&folder).with_context(|| folder.display().to_string())?,
                false => 0,
            };
            let (mode, points) = (mode.name(), points.len());
            println!("  {mode:<5} {points} points, {seeds} seeds; {done} finished runs");
        }
    }
    Ok(())
}
