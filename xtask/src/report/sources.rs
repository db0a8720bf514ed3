//! What there is to report.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::bench::record::Record;

/// Everything that was found, oldest first.
#[derive(Debug, Default)]
pub struct Sources {
    /// Records of `cargo xtask bench`.
    pub records: Vec<Record>,
    /// Training steps, ours and peers', from everywhere.
    pub steps: Vec<Step>,
    /// Shares of a limit that was measured in the same run, from other machines.
    pub shares: Vec<Share>,
}

/// One timed training step.
#[derive(Clone, Debug)]
pub struct Step {
    /// The file it stands in.
    pub source: String,
    /// On what.
    pub device: String,
    /// Sizes, in words: steps of one model and device are compared.
    pub model: String,
    /// Recipe and backend, or the peer and its configuration.
    pub name: String,
    /// Somebody else's.
    pub is_peer: bool,
    /// Median.
    pub ms: f64,
    /// Tokens of a step.
    pub tokens: f64,
    /// Peak memory: what we plan, what a peer says it used.
    pub memory_bytes: Option<f64>,
}

/// A rate as a share of its limit.
#[derive(Clone, Debug)]
pub struct Share {
    /// On what.
    pub device: String,
    /// What was measured.
    pub name: String,
    /// 1 is the limit.
    pub share: f64,
    /// What the limit is.
    pub limit: &'static str,
}

/// A line that a step leaves, ours or a peer's.
#[derive(Deserialize)]
struct StepLine {
    ms: f64,
    hidden: u64,
    layers: u64,
    batch: u64,
    seq: u64,
    device: String,
    recipe: Option<String>,
    backend: Option<String>,
    peer: Option<String>,
    config: Option<String>,
    planned_gib: Option<f64>,
    peak_gib: Option<f64>,
}

const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

impl Sources {
    /// Reads a folder of results.
    pub fn read(folder: &Path) -> Result<Self> {
        let mut found = Self::default();
        for (path, record) in Record::all(&folder.join("bench"))? {
            found.steps.extend(steps_of(&path, &record));
            found.records.push(record);
        }
        let mut files = Vec::new();
        json_lines(folder, &mut files);
        for path in files {
            found.lines(&path)?;
        }
        found.cpu(&folder.join("step_cpu.json"))?;
        Ok(found)
    }

    /// The newest record of each machine.
    pub fn newest(&self) -> Vec<&Record> {
        let mut newest: Vec<&Record> = Vec::new();
        for record in self.records.iter().rev() {
            if !newest.iter().any(|other| other.machine.is_like(&record.machine)) {
                newest.push(record);
            }
        }
        newest
    }

    /// Steps by device and model, in the order they were found.
    pub fn groups(&self) -> Vec<(String, Vec<&Step>)> {
        let mut groups: Vec<(String, Vec<&Step>)> = Vec::new();
        for step in &self.steps {
            let name = format!("{}, {}", step.device, step.model);
            match groups.iter_mut().find(|(other, _)| *other == name) {
                Some((_, steps)) => steps.push(step),
                None => groups.push((name, vec![step])),
            }
        }
        groups
    }

    /// Takes in the lines of one file; lines of other kinds are left alone.
    fn lines(&mut self, path: &Path) -> Result<()> {
        let text = fs::read_to_string(path)?;
        let source = path.display().to_string();
        let mut device = String::new();
        for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let value: Value = serde_json::from_str(line)
                .with_context(|| format!("{source}:{}: not JSON", at + 1))?;
            if let Some(name) = value["device"].as_str() {
                device = short(name);
            }
            for (key, limit) in [("of_copy", "copy"), ("of_bare", "bare product")] {
                if let (Some(share), Some(kernel)) = (value[key].as_f64(), value["kernel"].as_str())
                {
                    let sizes = ["fan_in", "fan_out"].map(|key| value[key].as_u64());
                    let name = match sizes {
                        [Some(a), Some(b)] => format!("{kernel}, {a} to {b}"),
                        _ => kernel.to_owned(),
                    };
                    self.shares.push(Share { device: device.clone(), name, share, limit });
                }
            }
            let Ok(line) = serde_json::from_value::<StepLine>(value) else { continue };
            let name = match (&line.peer, &line.recipe) {
                (Some(peer), _) => format!("{peer} {}", line.config.as_deref().unwrap_or("")),
                (None, Some(recipe)) => {
                    format!("{recipe} ({})", line.backend.as_deref().unwrap_or("onesigma"))
                }
                (None, None) => continue,
            };
            self.steps.push(Step {
                source: source.clone(),
                device: short(&line.device),
                model: format!(
                    "GPT of width {}, {} layers, {} x {} tokens",
                    line.hidden, line.layers, line.batch, line.seq
                ),
                name: name.trim().into(),
                is_peer: line.peer.is_some(),
                ms: line.ms,
                tokens: (line.batch * line.seq) as f64,
                memory_bytes: line.planned_gib.or(line.peak_gib).map(|gib| gib * GIB),
            });
        }
        Ok(())
    }

    /// The comparison with PyTorch on a processor.
    fn cpu(&mut self, path: &Path) -> Result<()> {
        let Ok(text) = fs::read_to_string(path) else { return Ok(()) };
        let value: Value = serde_json::from_str(&text)
            .with_context(|| format!("{} is not JSON", path.display()))?;
        let device = value["machine"].as_str().unwrap_or("processor").to_owned();
        let run = &value["runs"][0];
        for recipe in ["fp8", "f32"] {
            let times = ["step_ms_median", "peer_ms_median"].map(|key| run[recipe][key].as_f64());
            let [Some(own), Some(peer)] = times else { continue };
            for (name, is_peer, ms) in [
                (format!("{recipe} (cpu)"), false, own),
                (format!("pytorch eager f32, beside {recipe}"), true, peer),
            ] {
                self.steps.push(Step {
                    source: path.display().to_string(),
                    device: device.clone(),
                    model: "GPT of width 256, 4 layers, 8 x 256 tokens".into(),
                    name,
                    is_peer,
                    ms,
                    tokens: 2048.0,
                    memory_bytes: None,
                });
            }
        }
        Ok(())
    }
}

/// Without the version of a library, so that peers and we are on one device.
fn short(device: &str) -> String {
    device.split(", libtorch").next().unwrap_or(device).to_owned()
}

fn steps_of(path: &Path, record: &Record) -> Vec<Step> {
    let steps = record.cases.iter().filter(|case| case.suite == "step");
    let step = |case: &crate::bench::record::Case| Step {
        source: path.display().to_string(),
        device: format!("{}, {}", record.machine.words(), record.commit),
        model: case.group.clone(),
        name: format!("{} ({})", case.case, case.backend),
        is_peer: false,
        ms: case.median_ms(),
        tokens: case.items,
        memory_bytes: Some(case.planned_bytes as f64),
    };
    steps.map(step).collect()
}

/// Every `*.jsonl` below a folder, in order.
fn json_lines(folder: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            json_lines(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "jsonl") {
            found.push(path);
        }
    }
}
