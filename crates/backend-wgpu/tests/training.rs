//! Small models train here as they do on the CPU backend.
#![allow(clippy::print_stdout)] // a skip and a measured difference are said aloud

mod common;

use std::error::Error;

use onesigma_backend::Backend;
use onesigma_backend_cpu::CpuBackend;
use onesigma_backend_wgpu::{CooperativeMatrices, Options};
use onesigma_models::BertConfig;
use onesigma_ops::recipes;
use onesigma_train::batch::Batch;
use onesigma_train::bert::Bert;
use onesigma_train::config::ModelConfig;
use onesigma_train::model::Gpt;
use onesigma_train::optimizer::Optimizer;
use onesigma_train::program::{Model, Settings, Target, build};
use onesigma_train::session::Session;
use onesigma_train::task::Task;

type Outcome = Result<(), Box<dyn Error>>;

const SEQ: usize = 16;
const BATCH: usize = 2;
const VOCABULARY: usize = 256;
/// Masked tokens of a batch.
const MASKED: usize = 4;

/// The model that is trained.
#[derive(Clone, Copy)]
enum Kind {
    Gpt,
    Bert,
}

impl Kind {
    fn model(self, recipe: &str) -> Result<Box<dyn Model>, Box<dyn Error>> {
        let parametrisation = recipes::parametrisation(&recipes::load(recipe)?);
        Ok(match self {
            Self::Gpt => {
                let size =
                    ModelConfig { layers: 1, heads: 2, hidden: 32, seq: SEQ, ..Default::default() };
                Box::new(Gpt::new(&size, parametrisation)?)
            }
            Self::Bert => {
                let config = BertConfig {
                    vocab_size: VOCABULARY,
                    hidden_size: 32,
                    num_hidden_layers: 1,
                    num_attention_heads: 2,
                    intermediate_size: 64,
                    max_position_embeddings: SEQ,
                    ..BertConfig::default()
                };
                Box::new(Bert::new(config, Task::MaskedLm, parametrisation, 0.15)?)
            }
        })
    }

    /// A text with a pattern.
    fn batch(self, step: usize) -> Batch {
        let token = |i: usize| ((i * i * 7 + i * 5 + step * 13) % 61) as u32;
        let inputs: Vec<u32> = (0..BATCH * SEQ).map(token).collect();
        let step = step as u64;
        match self {
            Self::Gpt => {
                let targets = (1..=BATCH * SEQ).map(token).collect();
                Batch { step, inputs, targets, ..Batch::default() }
            }
            Self::Bert => {
                let rows: Vec<u32> = (0..MASKED as u32).map(|n| 5 * n + 1).collect();
                let targets = rows.iter().map(|&row| inputs[row as usize]).collect();
                let counted = (0..MASKED as u32).map(|n| u32::from(n != 2)).collect();
                let mut masked = inputs;
                rows.iter().for_each(|&row| masked[row as usize] = 103);
                Batch { step, inputs: masked, targets, more: vec![rows, counted] }
            }
        }
    }
}

fn losses(
    backend: &dyn Backend,
    kind: Kind,
    recipe: &str,
    steps: usize,
) -> Result<Vec<f32>, Box<dyn Error>> {
    let loaded = recipes::load(recipe)?;
    let model = kind.model(recipe)?;
    let settings = Settings {
        batch: BATCH,
        seq: SEQ,
        vocabulary: VOCABULARY,
        accumulate: 1,
        optimizer: Optimizer::AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, decay: 0.1 },
        clip: None,
    };
    let supports = |op: &_, inputs: &[_], output| backend.supports(op, inputs, output);
    let target = Target { supports: &supports, strict: false };
    let program = build(&*model, &loaded, settings, target)?;
    let engine = backend.compile(&program.program)?;
    let mut session = Session::new(program, engine);
    session.init(3)?;
    let batches: Vec<Batch> = (0..steps).map(|step| kind.batch(step)).collect();
    let is_scaled = recipes::parametrisation(&loaded).is_scaled();
    let rate = if is_scaled { 0.01 } else { 1e-3 };
    let mut losses = Vec::new();
    // Ten steps a call, as `onesigma train` does.
    for (call, batches) in batches.chunks(10).enumerate() {
        let rates = vec![rate; batches.len()];
        losses.extend(session.train(10 * call as u64, &rates, batches)?);
    }
    Ok(losses)
}

fn follows(kind: Kind, recipe: &str, steps: usize, allowed: f32) -> Outcome {
    let options = Options { matrices: CooperativeMatrices::Everywhere, ..Options::default() };
    let Some(backend) = common::backend(&options) else { return Ok(()) };
    let expected = losses(&CpuBackend::new(), kind, recipe, steps)?;
    let found = losses(&backend, kind, recipe, steps)?;
    let mut largest = 0.0_f32;
    for (found, expected) in found.iter().zip(&expected) {
        largest = largest.max((found - expected).abs() / expected.abs());
    }
    println!("{recipe}: losses differ by {largest:.1e} at most in {steps} steps");
    assert!(largest <= allowed, "{recipe}: {largest}");
    // A few masked tokens of a few steps teach a BERT nothing yet.
    let learnt = expected[steps - 1] < 0.95 * expected[0];
    assert!(learnt || matches!(kind, Kind::Bert), "{recipe} does not learn: {expected:?}");
    Ok(())
}

#[test]
fn f32_follows_the_cpu() -> Outcome {
    follows(Kind::Gpt, "f32", 40, 1e-4)
}

#[test]
fn bf16_follows_the_cpu() -> Outcome {
    follows(Kind::Gpt, "bf16", 40, 0.02)
}

/// Sums in another order round a code up or down now and then: the tolerance of the suite for the
/// loss of a step in narrow formats.
#[test]
fn unit_fp8_follows_the_cpu_for_200_steps() -> Outcome {
    follows(Kind::Gpt, "unit-fp8", 200, onesigma_conformance::tolerance::NARROW_LOSS as f32)
}

#[test]
fn a_bert_in_f32_follows_the_cpu() -> Outcome {
    follows(Kind::Bert, "f32", 8, 1e-4)
}

#[test]
fn a_bert_in_unit_fp8_follows_the_cpu() -> Outcome {
    follows(Kind::Bert, "unit-fp8", 8, onesigma_conformance::tolerance::NARROW_LOSS as f32)
}
