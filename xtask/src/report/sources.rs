//! What there is to report.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::bench::record::Record;

mod cpu;
mod wgpu;

/// Everything that was found, oldest first.
#[derive(Debug, Default)]
pub struct Sources {
    /// Records of `cargo xtask bench`.
    pub records: Vec<Record>,
    /// Training steps, ours and peers', from everywhere.
    pub steps: Vec<Step>,
    /// Shares of a limit that was measured in the same run, from other machines.
    pub shares: Vec<Share>,
    /// Matrix products.
    pub products: Vec<Product>,
    /// Training steps in series in which one size grows.
    pub growth: Vec<Growth>,
}

/// The rate of a matrix product.
#[derive(Clone, Debug)]
pub struct Product {
    /// On what.
    pub device: String,
    /// What for, and m x k x n.
    pub sizes: String,
    /// Their formats, or the peer.
    pub operands: String,
    /// FLOP a second.
    pub rate: f64,
    /// Over the rate of f32 multiply-adds in the same run.
    pub of_limit: Option<f64>,
}

/// A training step of a series.
#[derive(Clone, Debug)]
pub struct Growth {
    /// On what.
    pub device: String,
    /// What grows: width, depth or sequence.
    pub series: String,
    /// How far.
    pub at: f64,
    /// FLOP a second.
    pub rate: f64,
    /// Median.
    pub ms: f64,
}

/// Steps that were measured in one run.
#[derive(Clone, Debug)]
pub struct Group<'a> {
    /// Device and model, and the file where that is not enough.
    pub name: String,
    /// The processor or card.
    pub machine: &'a str,
    /// The steps.
    pub steps: Vec<&'a Step>,
}

/// The processor or card of a device, without threads, drivers and commits.
pub fn machine(device: &str) -> &str {
    device.split(", ").next().unwrap_or(device)
}

/// What is left of a group's name where the machine is said already.
pub fn without_machine<'a>(name: &'a str, machine: &str) -> &'a str {
    name.strip_prefix(machine).map_or(name, |rest| rest.trim_start_matches(", "))
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
    /// Peak memory: what we allocate or plan, what a peer says it used.
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
    allocated_gib: Option<f64>,
    planned_gib: Option<f64>,
    peak_gib: Option<f64>,
    /// Tensors that are computed again for want of memory.
    recomputed: Option<u64>,
}

const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

impl Sources {
    /// Reads a folder of results.
    pub fn read(folder: &Path) -> Result<Self> {
        let mut found = Self::default();
        let (paths, records): (Vec<_>, _) = Record::all(&folder.join("bench"))?.into_iter().unzip();
        found.records = records;
        // What older records of a machine say is history.
        let newest = found.newest();
        let all = paths.iter().zip(&found.records);
        let current =
            all.filter(|(_, record)| newest.iter().any(|new| std::ptr::eq(*new, *record)));
        found.steps = current.flat_map(|(path, record)| steps_of(path, record)).collect();
        cpu::read(&mut found, folder)?;
        wgpu::read(&mut found, folder)?;
        let mut files = Vec::new();
        files_below(folder, &mut files);
        for path in files {
            match path.extension().is_some_and(|extension| extension == "jsonl") {
                true => found.lines(&path)?,
                false => found.device_file(&path)?,
            }
        }
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

    /// Steps by device, model and file, in the order they were found: what was not measured in one
    /// run is not compared.
    pub fn groups(&self) -> Vec<Group<'_>> {
        let mut groups: Vec<Group<'_>> = Vec::new();
        for step in &self.steps {
            let mut name = format!("{}, {}", step.device, step.model);
            let other = |one: &&Step| one.source != step.source;
            if groups.iter().any(|own| own.name == name && own.steps.iter().any(other)) {
                let file = Path::new(&step.source).file_stem().unwrap_or_default();
                name = format!("{name} ({})", file.to_string_lossy());
            }
            match groups.iter_mut().find(|other| other.name == name) {
                Some(group) => group.steps.push(step),
                None => {
                    groups.push(Group { name, machine: machine(&step.device), steps: vec![step] })
                }
            }
        }
        groups
    }

    /// Takes in the lines of one file.
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
            self.row(&source, &device, value);
        }
        Ok(())
    }

    /// Takes in a file of the form `{"device": .., "rows": [..]}`; others are left alone.
    fn device_file(&mut self, path: &Path) -> Result<()> {
        let Some(mut value) = read_json::<Value>(path)? else { return Ok(()) };
        let Some(device) = value["device"].as_str().map(short) else { return Ok(()) };
        let source = path.display().to_string();
        if let Value::Array(rows) = value["rows"].take() {
            rows.into_iter().for_each(|row| self.row(&source, &device, row));
        }
        Ok(())
    }

    /// Takes in one measurement on a device; of other kinds than these it is left alone.
    fn row(&mut self, source: &str, device: &str, mut value: Value) {
        let name = ["kernel", "name"].iter().find_map(|key| value[key].as_str());
        for (key, limit) in [("of_copy", "copy"), ("of_bare", "bare product")] {
            let (Some(share), Some(name)) = (value[key].as_f64(), name) else { continue };
            let name = match ["fan_in", "fan_out"].map(|key| value[key].as_u64()) {
                [Some(a), Some(b)] => format!("{name}, {a} to {b}"),
                _ => name.to_owned(),
            };
            self.shares.push(Share { device: device.to_owned(), name, share, limit });
        }
        let listed = |key: &str| value[key].as_array().filter(|list| !list.is_empty());
        if let (Some(tflops), Some(sizes), Some(formats)) =
            (value["tflops"].as_f64(), listed("sizes"), listed("formats"))
        {
            let sizes: Vec<u64> = sizes.iter().filter_map(Value::as_u64).collect();
            let mut formats: Vec<&str> = formats.iter().filter_map(Value::as_str).collect();
            formats.dedup();
            if let [m, n, k] = sizes[..] {
                let square = if m == n && n == k { format!("square {m}: ") } else { String::new() };
                self.fastest(Product {
                    device: device.to_owned(),
                    sizes: format!("{square}{m} x {k} x {n}"),
                    operands: formats.join(" x "),
                    rate: tflops * 1e12,
                    of_limit: None,
                });
            }
        }
        if value["device"].is_null() {
            value["device"] = device.into();
        }
        let Ok(line) = serde_json::from_value::<StepLine>(value) else { return };
        let name = match (&line.peer, &line.recipe) {
            (Some(peer), _) => format!("{peer} {}", line.config.as_deref().unwrap_or("")),
            (None, Some(recipe)) => {
                let recipe = recipe.trim_end_matches(".toml");
                let backend = line.backend.as_deref().unwrap_or("onesigma");
                let less =
                    line.recomputed.filter(|&count| count > 0).map_or("", |_| ", less memory");
                format!("{recipe} ({backend}{less})")
            }
            (None, None) => return,
        };
        self.steps.push(Step {
            source: source.to_owned(),
            device: short(&line.device),
            model: gpt(line.hidden, line.layers, line.batch, line.seq),
            name: name.trim().into(),
            is_peer: line.peer.is_some(),
            ms: line.ms,
            tokens: (line.batch * line.seq) as f64,
            memory_bytes: line
                .allocated_gib
                .or(line.planned_gib)
                .or(line.peak_gib)
                .map(|gib| gib * GIB),
        });
    }

    /// Keeps a product, of several tries of the same the fastest.
    fn fastest(&mut self, product: Product) {
        let of = |p: &Product| (p.device.clone(), p.sizes.clone(), p.operands.clone());
        match self.products.iter_mut().find(|other| of(other) == of(&product)) {
            Some(other) if other.rate < product.rate => *other = product,
            Some(_) => {}
            None => self.products.push(product),
        }
    }
}

/// The number behind a flag of a command line that was recorded.
fn size(path: &Path, words: &str, flag: &str) -> Result<u64> {
    let mut all = words.split(' ').skip_while(|word| *word != flag);
    let value = all.nth(1).and_then(|word| word.parse().ok());
    value.with_context(|| format!("{}: no {flag} in `{words}`", path.display()))
}

/// The model of a step, in words.
fn gpt(width: u64, layers: u64, batch: u64, seq: u64) -> String {
    format!("GPT of width {width}, {layers} layers, {batch} x {seq} tokens")
}

/// A file, if it is there.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let Ok(text) = fs::read(path) else { return Ok(None) };
    let read = serde_json::from_slice(&text);
    read.map(Some).with_context(|| format!("{} is not of the form expected", path.display()))
}

/// Names that one card was given in different files, and the one that it has in the report.
const NAMES: [(&str, &str); 2] =
    [("one H100 80 GB HBM3", "NVIDIA H100 80GB HBM3"), ("headless Vulkan", "Vulkan")];

/// The name of a device: without the versions of a library and a driver, so that peers and we are
/// on one device, and the same in all files. What it is reached by stays, behind a comma.
fn short(device: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in device.split(", ").filter(|part| !part.starts_with("libtorch")) {
        let part = part.split(" (driver").next().unwrap_or(part);
        let known = NAMES.iter().find(|(written, _)| *written == part);
        parts.push(known.map_or(part, |(_, name)| name));
    }
    parts.join(", ")
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

/// Folders of results that are not of one device.
const OTHERS: [&str; 2] = ["bench", "experiments"];

/// Every `*.jsonl` below a folder, and every `*.json` below one of its folders, in order.
fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    let of = |folder: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut entries: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        entries.sort();
        entries
    };
    let has = |path: &Path, extension: &str| path.extension().is_some_and(|own| own == extension);
    for path in of(folder) {
        let is_other = path.file_name().is_some_and(|name| OTHERS.iter().any(|o| name == *o));
        if path.is_dir() && !is_other {
            let own = of(&path).into_iter().filter(|path| has(path, "jsonl") || has(path, "json"));
            found.extend(own);
        } else if has(&path, "jsonl") {
            found.push(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{machine, short};

    #[test]
    fn a_card_has_one_name_however_it_was_written_down() {
        for (written, name) in [
            ("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3"),
            ("NVIDIA H100 80GB HBM3, libtorch 2.11", "NVIDIA H100 80GB HBM3"),
            (
                "one H100 80 GB HBM3 (driver 580.159.04), headless Vulkan",
                "NVIDIA H100 80GB HBM3, Vulkan",
            ),
            ("NVIDIA H200, libtorch 2.11", "NVIDIA H200"),
            ("CPU Z, 2 processors, 1 thread", "CPU Z, 2 processors, 1 thread"),
        ] {
            assert_eq!(short(written), name);
            assert_eq!(machine(&short(written)), name.split(", ").next().unwrap_or(name));
        }
    }
}
