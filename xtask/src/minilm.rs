//! `cargo xtask minilm`: what storing a sentence encoder's weights in narrow formats does to its
//! cosines, as `docs/results/minilm.json`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::fetch::minilm;
use crate::process::{release_binary, root};

/// Arguments of `cargo xtask minilm`.
#[derive(Debug, clap::Args)]
pub struct Arguments {}

const TEXTS: [&str; 3] = [
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "The stock market fell sharply today.",
];
const FORMATS: [&str; 5] = ["F32", "F16", "BF16", "E4M3", "E5M2"];
const PARAMETRISATIONS: [&str; 4] = ["regular", "unit", "u-mup", "mu-s"];

/// The report of `onesigma embed --json`.
#[derive(Deserialize)]
struct Embedded {
    embeddings: Vec<Vec<f64>>,
    cosines: Vec<Vec<f64>>,
}

/// One format in one parametrisation.
#[derive(Serialize)]
struct Row {
    parametrisation: &'static str,
    format: &'static str,
    /// Of the first text with the second and with the third.
    cosines: [f64; 2],
    /// Smallest cosine of an embedding with that of the original weights.
    fidelity: f64,
}

#[derive(Serialize)]
struct Report {
    model: &'static str,
    texts: [&'static str; 3],
    /// What is stored in the format: matrices and tables.
    stored: &'static str,
    rows: Vec<Row>,
}

/// Runs every format in every parametrisation.
pub fn run_task(_arguments: &Arguments) -> Result<()> {
    let model = minilm();
    let is_there = model.join("model.safetensors").is_file();
    ensure!(is_there, "{} is missing; run `cargo xtask fetch minilm`", model.display());
    let program = release_binary("onesigma")?;
    let mut original: Option<Embedded> = None;
    let mut rows = Vec::new();
    for parametrisation in PARAMETRISATIONS {
        for format in FORMATS {
            let found = embed(&program, &model, parametrisation, format)?;
            let fidelity = match &original {
                None => 1.0,
                Some(original) => {
                    let pairs = original.embeddings.iter().zip(&found.embeddings);
                    pairs.map(|(a, b)| dot(a, b)).fold(1.0, f64::min)
                }
            };
            let cosines = [found.cosines[0][1], found.cosines[0][2]];
            println!(
                "{parametrisation:>8} {format:>5}  {:.4}  {:.4}  {fidelity:.5}",
                cosines[0], cosines[1]
            );
            rows.push(Row { parametrisation, format, cosines, fidelity });
            original.get_or_insert(found);
        }
    }
    let stored = "matrices and tables; vectors, activations and sums are in f32";
    let report = Report { model: "all-MiniLM-L6-v2", texts: TEXTS, stored, rows };
    let path = root().join("docs/results/minilm.json");
    let text = serde_json::to_string_pretty(&report)? + "\n";
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn embed(program: &Path, model: &Path, parametrisation: &str, format: &str) -> Result<Embedded> {
    let mut command = Command::new(program);
    command.args(["embed", "--json", "--format", format, "--to", parametrisation]);
    let output = command.arg(model).args(TEXTS).output().context("cannot start onesigma")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "onesigma embed failed: {error}");
    serde_json::from_slice(&output.stdout).context("not the report of onesigma embed")
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
