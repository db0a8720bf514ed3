//! `cargo xtask bench`: the criterion benchmarks, and the measurements that are kept as results.

use anyhow::Result;

use crate::process::{self, cargo_with};

mod machine;
mod peers;
mod scaling;
mod server;

/// Arguments of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Time training steps beside PyTorch, the Python unit-scaling library, candle and burn;
    /// writes docs/results/peers_cpu.json.
    #[arg(long)]
    peers: bool,
    /// Time matrix products beside multiply-adds and the `gemm` crate; writes
    /// docs/results/gemm_cpu.json.
    #[arg(long)]
    gemm: bool,
    /// Time training steps of several widths, depths and sequence lengths; writes
    /// docs/results/scaling_cpu.json.
    #[arg(long)]
    scaling: bool,
    /// With --peers: a Python that has torch and unit-scaling [default: a virtual environment below
    /// target/peers, which is made if it is not there].
    #[arg(long, value_name = "PATH")]
    python: Option<std::path::PathBuf>,
    /// With --peers: only this model and number of threads, such as gpt:2 or tiny:1; others keep
    /// their last results.
    #[arg(long, value_name = "MODEL:THREADS")]
    only: Option<String>,
    /// Times that everything takes its turn.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Passed on to criterion, for example the name of a benchmark.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Runs every benchmark of `benches/`, or makes the results that flags name.
pub fn run(arguments: &Arguments) -> Result<()> {
    if arguments.gemm {
        gemm(arguments.rounds)?;
    }
    if arguments.peers {
        peers::run(arguments.python.as_deref(), arguments.only.as_deref(), arguments.rounds)?;
    }
    if arguments.scaling {
        scaling::run(arguments.rounds)?;
    }
    if arguments.gemm || arguments.peers || arguments.scaling {
        return Ok(());
    }
    process::run(cargo_with(["bench", "--package", "onesigma-benches"]).args(&arguments.rest))
}

fn gemm(rounds: usize) -> Result<()> {
    let bench = ["bench", "--package", "onesigma-benches", "--bench", "gemm", "--"];
    let mut runs = Vec::new();
    for threads in [2, 1] {
        let file = process::root().join("target/gemm.json");
        let (threads, rounds) = (threads.to_string(), rounds.to_string());
        let mut command = cargo_with(bench);
        command.args(["--threads", &threads, "--rounds", &rounds, "--json"]).arg(&file);
        process::run(&mut command)?;
        runs.push(serde_json::from_slice::<serde_json::Value>(&std::fs::read(file)?)?);
    }
    machine::write("gemm_cpu.json", "cargo xtask bench --gemm", serde_json::json!({ "runs": runs }))
}
