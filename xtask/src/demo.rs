//! `cargo xtask demo`: the same GPT in FP8 and in f32, and what FP16 does without unit scaling.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::plot::{self, Chart, Curve, Point};
use crate::process::{self, root};

mod report;

pub use report::machine;

/// Arguments of `cargo xtask demo`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Runs of each recipe, with seeds 0, 1, ...; more than one also writes `docs/`.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Optimiser steps of each run.
    #[arg(long, default_value_t = STEPS)]
    steps: u64,
    /// Folder of the runs and the chart.
    #[arg(long, default_value = "target/demo")]
    out: PathBuf,
}

/// Long enough for the model to have learned words, short enough for a coffee.
const STEPS: u64 = 400;

/// The recipes, in the order of the table; the second is what the others are compared with.
const RECIPES: [&str; 3] = ["unit-fp8", "unit-f32", "fp16"];
const REFERENCE: &str = "unit-f32";

/// What `onesigma train` leaves in `summary.json`, as far as the demo shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Summary {
    recipe: String,
    seed: u64,
    steps: u64,
    parameters: u64,
    validation_loss: f64,
    tokens_per_s: f64,
    arena_bytes: u64,
    resident_bytes: Option<u64>,
    flushed_gradients: Option<f64>,
    corpus_sha256: String,
}

/// Trains every recipe with every seed and reports.
pub fn run(arguments: &Arguments) -> Result<()> {
    let started = Instant::now();
    let onesigma = process::release_binary("onesigma")?;
    let out = root().join(&arguments.out);
    if out.exists() {
        fs::remove_dir_all(&out).with_context(|| format!("cannot clear {}", out.display()))?;
    }
    let mut runs = Vec::new();
    let mut curves = Vec::new();
    for seed in 0..arguments.seeds.max(1) {
        for recipe in RECIPES {
            let folder = out.join(format!("{recipe}-{seed}"));
            train(&onesigma, recipe, seed, arguments.steps, &folder)?;
            runs.push(summary(&folder)?);
            if seed == 0 {
                curves.push(Curve { label: recipe.into(), points: losses(&folder)? });
            }
        }
    }
    let chart = out.join("loss.svg");
    let [title, x, y] =
        ["Training loss (mean of 20 steps)", "step", "nats per byte"].map(str::to_owned);
    let drawn = plot::svg(&Chart { title, x, y, curves, ..Chart::default() });
    fs::write(&chart, drawn.map_err(anyhow::Error::msg)?)
        .with_context(|| format!("cannot write {}", chart.display()))?;
    println!("\n{}", report::table(&runs, REFERENCE));
    println!("chart: {}", arguments.out.join("loss.svg").display());
    println!("took {:.0} s, the release build included", started.elapsed().as_secs_f64());
    if arguments.seeds > 1 {
        report::write_docs(&root(), &runs, REFERENCE, &chart)?;
        println!("wrote docs/results/demo.json, docs/src/results.md and its picture");
    }
    Ok(())
}

fn train(onesigma: &Path, recipe: &str, seed: u64, steps: u64, folder: &Path) -> Result<()> {
    let (seed, steps) = (seed.to_string(), steps.to_string());
    process::run(
        Command::new(onesigma)
            .current_dir(root())
            .args(["train", "--recipe", recipe, "--seed", &seed, "--steps", &steps])
            .args(["--eval-every", "100", "--save-every", "0"])
            .args(["--measure-gradients", "--out"])
            .arg(folder),
    )
}

fn summary(folder: &Path) -> Result<Summary> {
    let path = folder.join("summary.json");
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no summary", path.display()))
}

/// Training losses averaged over 20 steps, from `metrics.jsonl`.
fn losses(folder: &Path) -> Result<Vec<Point>> {
    let losses = crate::experiment::training_losses(folder)?;
    let mean = |(index, chunk): (usize, &[f64])| {
        let middle = index * 20 + chunk.len() / 2;
        Point::from((middle as f64, chunk.iter().sum::<f64>() / chunk.len() as f64))
    };
    Ok(losses.chunks(20).enumerate().map(mean).collect())
}
