//! What a measurement ran on.

use std::fs;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// Facts about a machine, as far as it tells them.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    /// Model of the processor.
    pub cpu: String,
    /// Its vector extensions, those that matter to kernels.
    pub features: Vec<String>,
    /// Cores that can be used.
    pub cores: usize,
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
    /// NVIDIA GPUs with their memory.
    pub gpus: Vec<String>,
    /// Their driver.
    pub driver: Option<String>,
    /// Kernel and architecture.
    pub system: String,
    /// Load average before measuring: above 0 something else was running.
    pub load: Option<f64>,
    /// Load average afterwards.
    pub load_after: Option<f64>,
}

const FEATURES: [&str; 10] = [
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_bf16",
    "asimd",
];

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = info.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let flags = field("flags").or_else(|| field("Features")).unwrap_or_default();
        let flags: Vec<&str> = flags.split_whitespace().collect();
        let (gpus, driver) = gpus();
        Self {
            cpu: field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            features: FEATURES
                .into_iter()
                .filter(|name| flags.contains(name))
                .map(str::to_owned)
                .collect(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory(),
            gpus,
            driver,
            system: format!("{} {}", kernel(), std::env::consts::ARCH),
            load: load(),
            load_after: None,
        }
    }

    /// Whether times of both can be compared: the load may differ, the hardware may not.
    pub fn is_like(&self, other: &Self) -> bool {
        (&self.cpu, self.cores, &self.gpus) == (&other.cpu, other.cores, &other.gpus)
    }

    /// In words: `AMD EPYC, 2 cores; NVIDIA H100`.
    pub fn words(&self) -> String {
        let mut words = vec![format!("{}, {} cores", self.cpu, self.cores)];
        words.extend(self.gpus.iter().cloned());
        words.join("; ")
    }
}

/// The load average of the last minute.
pub fn load() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

fn memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

fn kernel() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/ostype").unwrap_or_default();
    match release.trim() {
        "" => std::env::consts::OS.to_owned(),
        name => name.to_owned(),
    }
}

/// Names and memory of the GPUs that `nvidia-smi` sees, and the driver's version.
fn gpus() -> (Vec<String>, Option<String>) {
    let query = "--query-gpu=name,memory.total,driver_version";
    let output = Command::new("nvidia-smi").args([query, "--format=csv,noheader"]).output();
    let Ok(output) = output else { return (Vec::new(), None) };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split(',').map(str::trim).collect())
        .filter(|fields: &Vec<&str>| fields.len() == 3)
        .collect();
    let names = lines.iter().map(|fields| format!("{}, {}", fields[0], fields[1])).collect();
    (names, lines.first().map(|fields| fields[2].to_owned()))
}
