//! What the Rust peers have in common: flags, and the protocol of `--serve` that
//! `pytorch_gpt_step.py` describes.

use std::io::{BufRead, Write};
use std::time::Instant;

/// Sizes of the model and threads, from flags such as `--d-model 256`.
pub struct Sizes {
    pub d_model: usize,
    pub layers: usize,
    pub heads: usize,
    pub seq: usize,
    pub batch: usize,
    pub vocab: usize,
    pub threads: usize,
}

pub fn sizes() -> Sizes {
    let args: Vec<String> = std::env::args().collect();
    let flag = |name: &str, default: usize| {
        let at = args.iter().position(|arg| arg == name);
        at.and_then(|at| args.get(at + 1)?.parse().ok()).unwrap_or(default)
    };
    Sizes {
        d_model: flag("--d-model", 256),
        layers: flag("--layers", 4),
        heads: flag("--heads", 4),
        seq: flag("--seq", 256),
        batch: flag("--batch", 8),
        vocab: flag("--vocab", 256),
        threads: flag("--threads", 2),
    }
}

/// Token `i` of the sequence `row`.
pub fn token(sizes: &Sizes, row: usize, i: usize) -> u32 {
    let at = (row * (sizes.seq + 1) + i) as u64;
    ((at * 2_654_435_761 >> 7) % sizes.vocab as u64) as u32
}

fn peak_resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Answers each line of standard input, a number of steps, with their times.
pub fn serve(peer: &str, version: &str, threads: usize, mut step: impl FnMut() -> f64) {
    for _ in 0..4 {
        step();
    }
    println!(
        r#"{{"peer": "{peer}", "version": "{version}", "threads": {threads}, "ready": true}}"#
    );
    let mut loss = f64::NAN;
    for line in std::io::stdin().lock().lines() {
        let steps: usize = line.ok().and_then(|line| line.trim().parse().ok()).unwrap_or(1);
        let times: Vec<String> = (0..steps)
            .map(|_| {
                let start = Instant::now();
                loss = step();
                format!("{:.4}", start.elapsed().as_secs_f64() * 1e3)
            })
            .collect();
        println!(r#"{{"step_ms": [{}]}}"#, times.join(", "));
        std::io::stdout().flush().expect("the reader is there");
    }
    println!(r#"{{"peak_resident_bytes": {}, "loss": {loss:.4}}}"#, peak_resident_bytes());
}
