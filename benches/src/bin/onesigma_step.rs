//! Onesigma's own side of `cargo xtask bench --peers`: training steps of the model that `onesigma
//! train` builds for a recipe, in the protocol that `benches/peers/pytorch_gpt_step.py` describes.
//!
//! ```text
//! onesigma_step --recipe unit-fp8 [--threads 2] [--steps 15] [--serve]
//! ```
#![allow(clippy::print_stdout)]

use std::io::{BufRead, Write};
use std::str::FromStr;
use std::time::Instant;

use onesigma::setup;
use onesigma::train::batch::Batch;
use onesigma::train::config::{Config, ModelConfig};
use onesigma::train::session::Session;
use serde_json::json;

fn flag<T: FromStr>(name: &str, default: T) -> T {
    let args: Vec<String> = std::env::args().collect();
    let at = args.iter().position(|arg| arg == name);
    at.and_then(|at| args.get(at + 1)?.parse().ok()).unwrap_or(default)
}

fn config() -> Config {
    Config {
        recipe: flag("--recipe", "unit-fp8".to_owned()),
        batch: flag("--batch", 8),
        model: ModelConfig {
            layers: flag("--layers", 4),
            heads: flag("--heads", 4),
            hidden: flag("--d-model", 256),
            seq: flag("--seq", 256),
            ..ModelConfig::default()
        },
        ..Config::default()
    }
}

/// Sequences of tokens that do not repeat soon.
fn batch(config: &Config) -> Batch {
    let seq = config.model.seq as u64;
    let token = |row: u64, i: u64| (((row * (seq + 1) + i) * 2_654_435_761) >> 7) as u32 % 256;
    let window = |shift: u64| {
        (0..config.batch as u64)
            .flat_map(|row| (0..seq).map(move |i| token(row, i + shift)))
            .collect()
    };
    Batch { step: 0, inputs: window(0), targets: window(1), more: Vec::new() }
}

fn peak_resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// A session that counts its steps.
struct Steps {
    session: Session,
    batch: Batch,
    done: u64,
    loss: f32,
}

impl Steps {
    fn run(&mut self, count: usize) -> Result<Vec<f64>, onesigma::train::Error> {
        (0..count)
            .map(|_| {
                let start = Instant::now();
                let batch = std::slice::from_ref(&self.batch);
                self.loss = self.session.train(self.done, &[0.01], batch)?[0];
                self.done += 1;
                Ok(start.elapsed().as_secs_f64() * 1e3)
            })
            .collect()
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let threads: usize = flag("--threads", 2);
    // SAFETY: no other thread runs yet.
    unsafe { std::env::set_var("ONESIGMA_THREADS", threads.to_string()) };
    let config = config();
    let mut session = setup::session(&config)?;
    session.init(1)?;
    let mut steps = Steps { session, batch: batch(&config), done: 0, loss: f32::NAN };
    steps.run(flag("--warmup", 4))?;
    let name = format!("onesigma {}", config.recipe);
    let mut about = json!({
        "peer": name, "version": env!("CARGO_PKG_VERSION"), "threads": threads,
        "planned_bytes": steps.session.report().planned_bytes,
        "notes": steps.session.report().notes,
    });
    if std::env::args().any(|arg| arg == "--serve") {
        about["ready"] = true.into();
        println!("{about}");
        for line in std::io::stdin().lock().lines() {
            let times = steps.run(line?.trim().parse()?)?;
            println!("{}", json!({ "step_ms": times }));
            std::io::stdout().flush()?;
        }
        let peak = peak_resident_bytes();
        println!("{}", json!({ "peak_resident_bytes": peak, "loss": steps.loss }));
        return Ok(());
    }
    let mut times = steps.run(flag("--steps", 15))?;
    times.sort_by(f64::total_cmp);
    about["step_ms_median"] = times[times.len() / 2].into();
    about["step_ms_min"] = times[0].into();
    about["peak_resident_bytes"] = peak_resident_bytes().into();
    about["loss"] = steps.loss.into();
    println!("{about}");
    Ok(())
}
