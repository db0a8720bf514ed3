//! `cargo xtask bench`: every backend that is built in, on every device that is there.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::process::{self, cargo_with, root};

mod compare;
mod machine;
mod peers;
pub mod record;
mod scaling;
mod server;
mod statistics;
mod watch;

use record::{Line, Record};
pub use statistics::spread;

/// Arguments of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask bench                                  every suite, on what is built in by default
  cargo xtask bench --suite step --features candle   one suite, with one more backend
  cargo xtask bench --compare last                   beside the newest record of this machine
  cargo xtask bench --criterion gemm                 a micro-benchmark of benches/benches")]
pub struct Arguments {
    /// codec, gemm, kernel, layer or step; may be repeated [default: all]
    #[arg(long)]
    suite: Vec<String>,
    /// A backend, by the names of `onesigma backends`; may be repeated [default: all]
    #[arg(long)]
    backend: Vec<String>,
    /// Backends to build in besides the processor: candle, tch
    #[arg(long, value_delimiter = ',')]
    features: Vec<String>,
    /// Small sizes and fewer rounds: about a minute on two cores
    #[arg(long)]
    quick: bool,
    /// Samples of each case and start of the program
    #[arg(long)]
    rounds: Option<usize>,
    /// How often the program is started; what starts differ by counts as noise
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
    launches: u8,
    /// A record to compare with: a file, the start of a commit, or `last`. Exit code 1 if a case
    /// is slower beyond its noise
    #[arg(long, value_name = "BASE")]
    compare: Option<String>,
    /// Slowdown that is no regression, whatever the noise
    #[arg(long, default_value_t = 0.05)]
    tolerance: f64,
    /// Folder of the records; nothing in it is ever overwritten
    #[arg(long, default_value = "docs/results/bench")]
    out: PathBuf,
    /// Measure with this program instead of building it
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Compare two records that are there, measure nothing
    #[arg(long, value_name = "RECORD", requires = "compare")]
    record: Option<PathBuf>,
    /// Time training steps beside PyTorch, the Python unit-scaling library, candle and burn instead;
    /// writes docs/results/peers_cpu.json
    #[arg(long)]
    peers: bool,
    /// Time matrix products beside multiply-adds and the `gemm` crate instead; writes
    /// docs/results/gemm_cpu.json
    #[arg(long)]
    gemm: bool,
    /// Time training steps of several widths, depths and sequence lengths instead; writes
    /// docs/results/scaling_cpu.json
    #[arg(long)]
    scaling: bool,
    /// With --peers: a Python that has torch and unit-scaling [default: a virtual environment below
    /// target/peers, which is made if it is not there]
    #[arg(long, value_name = "PATH")]
    python: Option<PathBuf>,
    /// With --peers: only this model and number of threads, such as gpt:2 or tiny:1; others keep
    /// their last results
    #[arg(long, value_name = "MODEL:THREADS")]
    only: Option<String>,
    /// Run criterion benchmarks instead; what follows is passed on, such as `gemm` or `-- --help`
    #[arg(long, num_args = 0.., allow_hyphen_values = true, value_name = "BENCH")]
    criterion: Option<Vec<String>>,
}

/// Builds, measures, keeps the record and compares.
pub fn run(arguments: &Arguments) -> Result<()> {
    if let Some(rest) = &arguments.criterion {
        let mut bench = cargo_with(["bench", "--package", "onesigma-benches"]);
        if let Some((name, rest)) = rest.split_first() {
            bench.args(["--bench", name, "--"]).args(rest);
        }
        return process::run(&mut bench);
    }
    if arguments.gemm || arguments.peers || arguments.scaling {
        return take_turns(arguments);
    }
    let folder = root().join(&arguments.out);
    // The base first: without it there is no need to measure.
    let base = match &arguments.compare {
        Some(name) => Some(compare::base(&folder, name, &machine::Machine::here())?),
        None => None,
    };
    let record = match &arguments.record {
        Some(path) => Record::read(path)?,
        None => {
            let record = measure(arguments)?;
            let path = record.keep(&folder)?;
            println!("\n{}", record.table());
            println!("record: {}", path.display());
            record
        }
    };
    let Some((path, base)) = base else { return Ok(()) };
    println!("\nbeside {}", path.display());
    let comparison = compare::Comparison::new(&base, &record, arguments.tolerance);
    println!("{comparison}");
    let worse = comparison.regressions();
    ensure!(worse == 0, "{worse} of {} cases are slower beyond their noise", comparison.len());
    Ok(())
}

/// The measurements in which programs take turns, each kept as one file of docs/results.
fn take_turns(arguments: &Arguments) -> Result<()> {
    let rounds = arguments.rounds.unwrap_or(5);
    if arguments.gemm {
        gemm(rounds)?;
    }
    if arguments.peers {
        peers::run(arguments.python.as_deref(), arguments.only.as_deref(), rounds)?;
    }
    if arguments.scaling {
        scaling::run(rounds)?;
    }
    Ok(())
}

fn gemm(rounds: usize) -> Result<()> {
    let bench = ["bench", "--package", "onesigma-benches", "--bench", "gemm", "--"];
    let mut runs = Vec::new();
    for threads in [2, 1] {
        let file = root().join("target/gemm.json");
        let (threads, rounds) = (threads.to_string(), rounds.to_string());
        let mut command = cargo_with(bench);
        command.args(["--threads", &threads, "--rounds", &rounds, "--json"]).arg(&file);
        process::run(&mut command)?;
        let text = std::fs::read(&file).with_context(|| format!("no {}", file.display()))?;
        runs.push(serde_json::from_slice::<serde_json::Value>(&text)?);
    }
    keep("gemm_cpu.json", "cargo xtask bench --gemm", serde_json::json!({ "runs": runs }))
}

/// Adds facts about machine and source to `result` and writes it to docs/results.
fn keep(name: &str, command: &str, mut result: serde_json::Value) -> Result<()> {
    result["machine"] = serde_json::to_value(machine::Machine::here())?;
    result["command"] = command.into();
    result["commit"] = crate::release::git(&["rev-parse", "--short", "HEAD"])?.into();
    let path = root().join("docs/results").join(name);
    std::fs::write(&path, serde_json::to_string_pretty(&result)? + "\n")
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("wrote docs/results/{name}");
    Ok(())
}

fn measure(arguments: &Arguments) -> Result<Record> {
    let program = match &arguments.binary {
        Some(path) => path.clone(),
        None => build(&arguments.features)?,
    };
    let mut record = Record::here();
    for launch in 0..arguments.launches {
        start(&program, arguments, launch == 0, &mut record)?;
    }
    record.machine.load_after = machine::load();
    Ok(record)
}

/// One start of the program. Later ones have nothing new to say of devices and what is skipped.
fn start(program: &Path, arguments: &Arguments, is_first: bool, record: &mut Record) -> Result<()> {
    let mut command = Command::new(program);
    let both = |command: &mut Command, flag: &str, values: &[String]| {
        values.iter().for_each(|value| {
            command.args([flag, value]);
        });
    };
    both(&mut command, "--suite", &arguments.suite);
    both(&mut command, "--backend", &arguments.backend);
    let rounds = arguments.rounds.unwrap_or(if arguments.quick { 4 } else { 7 });
    command.args(["--rounds", &rounds.to_string()]);
    if arguments.quick {
        command.args(["--quick", "--sample-ms", "10"]);
    }
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start the benchmark")?;
    let lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    for line in lines {
        let line = line?;
        match serde_json::from_str(&line).with_context(|| format!("not understood: {line}"))? {
            Line::Case(case) => record.add(case),
            _ if !is_first => {}
            Line::Device(device) => record.devices.push(device),
            Line::Skipped(skipped) => {
                eprintln!("skipped: {}: {}", skipped.what, skipped.reason);
                record.skipped.push(skipped);
            }
        }
    }
    let status = child.wait()?;
    ensure!(status.success(), "the benchmark failed with {status}");
    ensure!(!record.cases.is_empty(), "no case was measured");
    Ok(())
}

fn build(features: &[String]) -> Result<PathBuf> {
    let mut build = cargo_with(["build", "--release", "--package", "onesigma-benches"]);
    build.args(["--bin", "onesigma_bench", "--features", &features.join(",")]);
    process::executable(&mut build)
}
