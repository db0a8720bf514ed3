//! The machine that a result was measured on, and whether it was quiet.

use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::process;

/// Clock ticks of the kernel in a second.
const TICKS: f64 = 100.0;

/// Adds facts about machine and source to `result` and writes it to docs/results.
pub fn write(name: &str, command: &str, mut result: Value) -> Result<()> {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
    };
    let flags = field("flags").unwrap_or_default();
    let known = ["avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "avx512_fp16", "amx_bf16"];
    let present: Vec<&str> = flags.split_whitespace().filter(|flag| known.contains(flag)).collect();
    result["machine"] = json!({
        "processor": field("model name"), "family": field("cpu family"), "model": field("model"),
        "processors": processors(), "vectors": present,
    });
    result["command"] = command.into();
    result["commit"] = git(&["rev-parse", "--short", "HEAD"]).into();
    result["date"] = git(&["log", "-1", "--format=%cs"]).into();
    let path = process::root().join("docs/results").join(name);
    std::fs::write(&path, serde_json::to_string_pretty(&result)? + "\n")
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("wrote docs/results/{name}");
    Ok(())
}

fn git(arguments: &[&str]) -> Option<String> {
    let mut command = std::process::Command::new("git");
    let output = command.current_dir(process::root()).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.trim().to_owned())
}

pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, |count| count.get())
}

/// Watches how much of the machine other processes use.
pub struct Watch {
    pid: u32,
    start: Instant,
    busy: f64,
    own: f64,
}

impl Watch {
    /// Starts watching; `pid` is the process that is measured.
    pub fn new(pid: u32) -> Self {
        Self { pid, start: Instant::now(), busy: busy_seconds(), own: process_seconds(pid) }
    }

    /// Part of the machine that others used since, from 0 to 1.
    pub fn others(&self) -> f64 {
        let busy = busy_seconds() - self.busy;
        let own = process_seconds(self.pid) - self.own;
        let whole = self.start.elapsed().as_secs_f64() * processors() as f64;
        ((busy - own) / whole).clamp(0.0, 1.0)
    }
}

/// Seconds that all processors together have worked, or were taken away.
fn busy_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<f64> =
        line.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal
    [0, 1, 2, 5, 6, 7].iter().filter_map(|&at| ticks.get(at)).sum::<f64>() / TICKS
}

fn process_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in brackets may hold spaces; utime and stime are the 12th and 13th field after it.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|word| word.parse::<f64>().ok())
        .sum::<f64>()
        / TICKS
}
