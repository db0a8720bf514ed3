//! Trains a byte-level GPT from the library, in FP8, and lets it write.
//!
//! ```text
//! cargo run --release -p onesigma-examples --example train_gpt -- [TEXT] [STEPS]
//! ```
//!
//! `TEXT` is a file; without one the source of this workspace's dependencies is used.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use onesigma::setup;
use onesigma::train::config::{Config, ModelConfig};
use onesigma::train::corpus::{Corpus, Document};
use onesigma::train::generate::{Sampling, generate};
use onesigma::train::run_dir::RunDir;
use onesigma::train::telemetry::{Event, Observer, Record};
use onesigma::train::trainer::{Summary, Trainer};

/// Tells what happens.
struct Print;

impl Observer for Print {
    fn event(&mut self, event: &Event) {
        if let Event::Metric(Record::Evaluation { step, loss, .. }) = event {
            println!("step {step}: validation loss {loss:.3} nats a byte");
        }
    }
}

/// Trains on `corpus` in the run folder `folder`; gives the summary and some text of the model's.
fn train(
    config: &Config,
    corpus: &Corpus,
    folder: &Path,
) -> onesigma::train::Result<(Summary, String)> {
    let session = setup::session(config)?;
    let mut trainer = Trainer::new(session, config, setup::default_rate(config)?, corpus)?;
    let mut run = RunDir::create(folder, config)?;
    let summary = trainer.run(&mut run, &mut Print, &AtomicBool::new(false))?;
    let prompt: Vec<_> = "pub fn ".bytes().map(Into::into).collect();
    let sampling = Sampling { temperature: 0.8, top_k: 40, seed: 0 };
    let mut text = Vec::new();
    generate(trainer.session(), &prompt, 120, sampling, |token| {
        text.push(token as u8);
        true
    })?;
    Ok((summary, String::from_utf8_lossy(&text).into_owned()))
}

fn config(steps: u64) -> Config {
    Config {
        recipe: "unit-fp8".into(),
        steps,
        batch: 8,
        eval_every: 50,
        save_every: 0,
        model: ModelConfig { layers: 2, heads: 2, hidden: 64, seq: 64, ..ModelConfig::default() },
        ..Config::default()
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let corpus = match arguments.next() {
        Some(path) => {
            let text = std::fs::read(&path)?;
            Corpus::from_documents(&path, vec![Document { name: path.clone(), text }], Vec::new())
        }
        None => Corpus::cargo(Path::new("."))?,
    };
    let steps = arguments.next().map_or(Ok(300), |steps| steps.parse())?;
    let name = format!("onesigma-train-gpt-{}", std::process::id());
    let folder = std::env::temp_dir().join(name);
    let (summary, text) = train(&config(steps), &corpus, &folder)?;
    println!("{:.0} tokens/s; run folder {}", summary.tokens_per_s, folder.display());
    println!("pub fn {text}");
    Ok(())
}

#[test]
fn a_small_gpt_learns() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let text = "The quick brown fox jumps over the lazy dog. ".repeat(400);
    let document = Document { name: "fox".into(), text: text.into_bytes() };
    let corpus = Corpus::from_documents("fox", vec![document], Vec::new());
    let (summary, _) = train(&config(60), &corpus, &folder.path().join("run"))?;
    assert_eq!(summary.steps, 60);
    assert!(summary.validation_loss < 3.5, "{}", summary.validation_loss);
    Ok(())
}
