//! `onesigma convert`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use onesigma::format::Format;
use onesigma::models::{Converted, rms};
use onesigma::ops::Parametrisation;
use onesigma::train::Error;

use super::model;

/// Files of a tokeniser that go with a model.
const TOKENIZER_FILES: [&str; 6] = [
    "tokenizer.json",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "merges.txt",
    "vocab.json",
];

/// Arguments of `onesigma convert`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The new model is the same function: each tensor is multiplied by one constant, which is listed.
A tied readout becomes a parameter of its own. A regular model has Hugging Face's own model type
and names, a scaled one a type that other programs refuse.

Examples:
  onesigma convert runs/bert bert-hf --to regular
  onesigma convert bert-base-uncased bert-unit --to unit
  onesigma convert bert-unit bert-fp8 --format E4M3")]
pub struct Arguments {
    /// A run folder, a checkpoint file, or a Hugging Face folder
    from: PathBuf,
    /// Folder to make: config.json, model.safetensors and the tokeniser
    to_folder: PathBuf,
    /// regular, unit, u-mup or mu-s [default: as it is]
    #[arg(long, value_name = "PARAMETRISATION")]
    to: Option<String>,
    /// Format of the stored weights: F32, F16, BF16, E4M3 or E5M2
    #[arg(long, default_value = "F32")]
    format: String,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

/// What became of one tensor.
#[derive(serde::Serialize)]
struct Line {
    name: String,
    shape: Vec<usize>,
    /// By what it was multiplied.
    factor: f64,
    /// Root mean square before and after.
    before: f64,
    after: f64,
}

/// Converts and lists the constants.
pub fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { from, to_folder, to, format, json } = arguments;
    let format: Format = format.parse()?;
    if to_folder.join("config.json").exists() {
        return Err(Error::Setting {
            name: "TO_FOLDER",
            given: to_folder.display().to_string(),
            expected: "a folder without a model".into(),
        }
        .into());
    }
    let opened = model::open(from, None)?;
    let old = &opened.pretrained;
    let to: Parametrisation = match to {
        Some(name) => name.parse()?,
        None => old.parametrisation,
    };
    let Converted { model, factors } = old.convert(to)?;
    model.save(to_folder, format)?;
    if model::is_hugging_face(from) {
        copy_tokenizer(from, to_folder)?;
    } else if let Some(pieces) = &opened.pieces {
        pieces.save(&to_folder.join("tokenizer.json"))?;
        let list = pieces.tokens().join("\n") + "\n";
        fs::write(to_folder.join("vocab.txt"), list)
            .with_context(|| format!("cannot write into {}", to_folder.display()))?;
    }
    let lines: Vec<Line> = model
        .weights
        .iter()
        .map(|(name, tensor)| {
            let source = old.weights.get(name).or(old.weights.get(old.model.token_table()));
            let factor = factors.get(name).copied().unwrap_or(1.0);
            let (before, after) = (source.map_or(0.0, rms), rms(tensor));
            Line { name: name.clone(), shape: tensor.shape.clone(), factor, before, after }
        })
        .collect();
    let mut out = io::stdout().lock();
    if *json {
        let report = serde_json::json!({
            "from": old.parametrisation.to_string(),
            "to": to.to_string(),
            "format": format.to_string(),
            "tensors": lines,
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
        return Ok(());
    }
    writeln!(out, "{:>12}  {:>10}  {:>10}  tensor", "times", "rms before", "after")?;
    for Line { name, shape, factor, before, after } in lines {
        writeln!(out, "{factor:>12.6}  {before:>10.4}  {after:>10.4}  {name} {shape:?}")?;
    }
    let (from, to) = (old.parametrisation, to.to_string());
    writeln!(out, "{from} to {to}, stored in {format}: {}", to_folder.display())?;
    Ok(())
}

fn copy_tokenizer(from: &Path, to: &Path) -> Result<()> {
    for name in TOKENIZER_FILES {
        let file = from.join(name);
        if file.is_file() {
            fs::copy(&file, to.join(name))
                .with_context(|| format!("cannot copy {}", file.display()))?;
        }
    }
    Ok(())
}
