//! Measures every backend that is built in, on every device that is there: what `cargo xtask bench`
//! runs. Prints one JSON object a line; see `xtask/src/bench/record.rs` for what is kept of them.
//!
//! ```text
//! onesigma_bench [--suite step]... [--backend cpu]... [--rounds 15] [--sample-ms 20] [--quick]
//! ```
//!
//! Cases of one group are interleaved, backends and formats alike: round after round each takes one
//! sample, so that whatever else the machine does falls on all of them. A sample is as many runs as
//! fill the sample time; its time is that of one run.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod cases;
mod measure;

use std::error::Error;

use onesigma::backend::Backend;
use onesigma::backends::BACKENDS;
use serde_json::json;

/// What the command line asks for.
struct Options {
    suites: Vec<String>,
    backends: Vec<String>,
    rounds: usize,
    sample_ms: f64,
    quick: bool,
}

const SUITES: [&str; 5] = ["codec", "gemm", "kernel", "layer", "step"];

fn options() -> Result<Options, String> {
    let mut found = Options {
        suites: Vec::new(),
        backends: Vec::new(),
        rounds: 15,
        sample_ms: 20.0,
        quick: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        match &*word {
            "--suite" => found.suites.push(value()?),
            "--backend" => found.backends.push(value()?),
            "--rounds" => found.rounds = number(&value()?)? as usize,
            "--sample-ms" => found.sample_ms = number(&value()?)?,
            "--quick" => found.quick = true,
            _ => return Err(format!("unknown flag `{word}`")),
        }
    }
    let unknown = |given: &[String], known: &[&str]| {
        given.iter().find(|name| !known.contains(&&***name)).cloned()
    };
    let backends: Vec<&str> = BACKENDS.iter().map(|entry| entry.name).collect();
    if let Some(name) = unknown(&found.suites, &SUITES) {
        return Err(format!("unknown suite `{name}`; there are {}", SUITES.join(", ")));
    }
    if let Some(name) = unknown(&found.backends, &backends) {
        return Err(format!("backend `{name}` is not built in; there are {}", backends.join(", ")));
    }
    Ok(found)
}

fn number(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| format!("`{text}` is no number"))?;
    if value >= 1.0 { Ok(value) } else { Err(format!("{value} is less than 1")) }
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = options()?;
    let mut devices: Vec<(&str, Box<dyn Backend>)> = Vec::new();
    for entry in BACKENDS {
        if !options.backends.is_empty() && !options.backends.iter().any(|name| name == entry.name) {
            continue;
        }
        match (entry.open)() {
            Ok(backend) => devices.push((entry.name, backend)),
            Err(error) => {
                let reason = error.to_string();
                println!("{}", json!({"kind": "skipped", "what": entry.name, "reason": reason}));
            }
        }
    }
    // Limits before the cases: a case's limit is what these rates allow.
    let limits: Vec<_> = devices.iter().map(|(_, backend)| backend.limits()).collect();
    for ((name, backend), limits) in devices.iter().zip(&limits) {
        let caps = backend.caps();
        println!(
            "{}",
            json!({
                "kind": "device", "backend": name, "device": caps.device,
                "memory_bytes": caps.memory_bytes, "limits": limits,
            })
        );
    }
    let wanted =
        |suite: &str| options.suites.is_empty() || options.suites.iter().any(|s| s == suite);
    for group in cases::groups(options.quick) {
        if !wanted(group.suite) {
            continue;
        }
        eprintln!("{}: {}", group.suite, group.name);
        let mut running = Vec::new();
        for ((name, _), limits) in devices.iter().zip(&limits) {
            for case in &group.cases {
                match measure::Running::start(name, case, limits.as_ref()) {
                    Ok(started) => running.push(started),
                    Err(error) => println!(
                        "{}",
                        json!({
                            "kind": "skipped", "what": format!("{name}: {} {}", group.name, case.name),
                            "reason": error.to_string(),
                        })
                    ),
                }
            }
        }
        for _ in 0..options.rounds {
            for one in &mut running {
                one.sample(options.sample_ms)?;
            }
        }
        for one in running {
            println!("{}", one.finish(&group));
        }
    }
    Ok(())
}
