//! Training steps beside those of other libraries, in one run: every contender is started and warmed
//! up, then they take turns.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::server::Server;
use super::watch;
use crate::process::{cargo_with, root, run as run_command};

/// A model, steps of a turn, and the flags that every contender understands.
const MODELS: [(&str, usize, &str); 2] = [
    ("gpt", 4, "--d-model 256 --layers 4 --heads 4 --seq 256 --batch 8"),
    ("tiny", 150, "--d-model 64 --layers 2 --heads 4 --seq 32 --batch 2"),
];
const OWN: [&str; 2] = ["unit-fp8", "unit-f32"];
const PYTORCH: [&str; 7] =
    ["eager", "eager-fused", "compile", "fp8", "bf16", "unit-scaling", "unit-scaling-fp8"];
/// PyTorch's ways to train in f32.
const F32: [&str; 3] = ["pytorch eager", "pytorch eager-fused", "pytorch compile"];
const RUST: [&str; 2] = ["candle", "burn"];

/// Builds what it can, measures, prints a table, writes docs/results/peers_cpu.json.
pub fn run(python: Option<&Path>, only: Option<&str>, rounds: usize) -> Result<()> {
    let own = own_binary()?;
    let python = match python {
        Some(path) => Ok(path.to_path_buf()),
        None => environment(),
    };
    let rust = RUST.map(|name| (name, rust_peer(name)));
    let mut results = Vec::new();
    for (model, steps, sizes) in MODELS {
        for threads in [2, 1].into_iter().filter(|&threads| threads <= watch::processors()) {
            let name = format!("{model}:{threads}");
            if only.is_some_and(|only| only != name) {
                results.extend(last_result(model, threads));
                continue;
            }
            let with = |program: &Path, before: &[&str]| {
                let mut command = Command::new(program);
                command.args(before).args(sizes.split(' '));
                command.args(["--threads", &threads.to_string()]);
                // Some of their kernels ask the environment, not the pool that the peer makes.
                for variable in ["RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"] {
                    command.env(variable, threads.to_string());
                }
                command
            };
            let mut commands: Vec<(String, Result<Command>)> = Vec::new();
            for recipe in OWN {
                commands
                    .push((format!("onesigma {recipe}"), Ok(with(&own, &["--recipe", recipe]))));
            }
            for mode in PYTORCH {
                let script = root().join("benches/peers/pytorch_gpt_step.py");
                let script = script.to_string_lossy().into_owned();
                let command = match &python {
                    Ok(python) => Ok(with(python, &[&script, "--mode", mode])),
                    Err(error) => Err(anyhow::anyhow!("{error:#}")),
                };
                commands.push((format!("pytorch {mode}"), command));
            }
            for (name, binary) in &rust {
                let command = match binary {
                    Ok(binary) => Ok(with(binary, &[])),
                    Err(error) => Err(anyhow::anyhow!("{error:#}")),
                };
                commands.push(((*name).to_owned(), command));
            }
            results.push(measure(model, sizes, threads, steps, rounds, commands)?);
        }
    }
    super::keep("peers_cpu.json", "cargo xtask bench --peers", json!({ "results": results }))
}

/// What the last run found for a model and a number of threads.
fn last_result(model: &str, threads: usize) -> Option<Value> {
    let file = std::fs::read(root().join("docs/results/peers_cpu.json")).ok()?;
    let last: Value = serde_json::from_slice(&file).ok()?;
    let mut results = last["results"].as_array()?.iter();
    results.find(|result| result["model"] == model && result["threads"] == threads).cloned()
}

fn measure(
    model: &str,
    sizes: &str,
    threads: usize,
    steps: usize,
    rounds: usize,
    commands: Vec<(String, Result<Command>)>,
) -> Result<Value> {
    println!("{model} ({sizes}), {threads} threads");
    let mut servers: Vec<(String, Server)> = Vec::new();
    for (name, command) in commands {
        match command.and_then(Server::start) {
            Ok(server) => servers.push((name, server)),
            Err(error) => println!("  skipped {name}: {error:#}"),
        }
    }
    for round in 0..rounds {
        for (_, server) in &mut servers {
            // The slowest take one turn: their seconds are not in question.
            let slow = server.median() * steps as f64 > 4_000.0;
            if round == 0 || !slow {
                let few = server.about["peer"].as_str().is_some_and(|p| p.ends_with("scaling-fp8"));
                server.turn(if few { steps.div_ceil(2) } else { steps })?;
            }
        }
    }
    let mut rows = Vec::new();
    for (name, server) in &mut servers {
        let (median, least) =
            (server.median(), server.step_ms.iter().copied().fold(f64::INFINITY, f64::min));
        let peak = server.finish()?;
        println!(
            "  {name:<24} {median:9.3} ms median {least:9.3} ms least {:7.1} MiB peak, {:.2} \
             processors, others used {:.0} %",
            peak as f64 / 1_048_576.0,
            server.processors,
            server.others * 100.0
        );
        rows.push(json!({
            "name": name, "version": server.about["version"], "step_ms_median": round3(median),
            "step_ms_least": round3(least), "steps": server.step_ms.len(),
            "peak_resident_bytes": peak, "processors_used": round3(server.processors),
            "others_used_at_most": round3(server.others),
        }));
    }
    let ratios = ratios(&rows);
    for (name, ratio) in ratios.as_object().into_iter().flatten() {
        println!("  {name:<44} {ratio}");
    }
    Ok(json!({
        "model": model, "sizes": sizes, "threads": threads, "contenders": rows, "ratios": ratios,
    }))
}

/// The figures that the bars are about; of medians, and of peaks of resident memory.
fn ratios(rows: &[Value]) -> Value {
    let of = |name: &str, what: &str| {
        rows.iter().find(|row| row["name"] == name).and_then(|row| row[what].as_f64())
    };
    let least = |names: &[&str], what: &str| {
        let values = names.iter().filter_map(|name| of(name, what));
        values.min_by(f64::total_cmp)
    };
    let (time, memory) = ("step_ms_median", "peak_resident_bytes");
    let mut ratios = json!({});
    let mut add = |name: &str, value: Option<f64>, peer: Option<f64>| {
        if let (Some(value), Some(peer)) = (value, peer) {
            ratios[name] = round3(value / peer).into();
        }
    };
    let own = of("onesigma unit-fp8", time);
    add("unit-fp8 / best PyTorch f32", own, least(&F32, time));
    add("unit-fp8 / PyTorch compiled with FP8 casts", own, of("pytorch fp8", time));
    add("unit-fp8 / own f32", own, of("onesigma unit-f32", time));
    add("unit-fp8 / unit-scaling f32", own, of("pytorch unit-scaling", time));
    add("unit-fp8 / candle", own, of("candle", time));
    add("unit-fp8 / burn", own, of("burn", time));
    add("own f32 / best PyTorch f32", of("onesigma unit-f32", time), least(&F32, time));
    let own = of("onesigma unit-fp8", memory);
    add("memory: unit-fp8 / least PyTorch f32", own, least(&F32, memory));
    add("memory: unit-fp8 / burn", own, of("burn", memory));
    add("memory: unit-fp8 / candle", own, of("candle", memory));
    ratios
}

pub fn round3(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

/// Onesigma's own contender.
pub fn own_binary() -> Result<PathBuf> {
    let build = ["build", "--release", "--package", "onesigma-benches", "--bin", "onesigma_step"];
    run_command(&mut cargo_with(build))?;
    Ok(root().join("target/release/onesigma_step"))
}

/// A virtual environment with the Python peers, made if it is not there.
fn environment() -> Result<PathBuf> {
    let folder = root().join("target/peers/python");
    let python = folder.join("bin/python");
    if !python.exists() {
        run_command(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        let install = ["-m", "pip", "install", "--quiet", "torch", "numpy", "unit-scaling"];
        run_command(Command::new(&python).args(install)).inspect_err(|_| {
            // A half-made environment must not pass for a whole one.
            let _ = std::fs::remove_dir_all(&folder);
        })?;
    }
    Ok(python)
}

/// A peer in Rust, built in a target folder of its own for this processor.
fn rust_peer(name: &str) -> Result<PathBuf> {
    let manifest = root().join("benches/peers").join(name).join("Cargo.toml");
    let target = root().join("target/peers").join(name);
    let mut command = cargo_with(["build", "--release", "--manifest-path"]);
    command.arg(manifest).arg("--target-dir").arg(&target);
    run_command(&mut command).with_context(|| format!("{name} cannot be built"))?;
    let binary = target.join("release").join(format!("{name}-peer"));
    ensure!(binary.exists(), "{} was not built", binary.display());
    Ok(binary)
}
