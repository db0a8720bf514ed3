//! Small models train here as they do on the CPU backend.

mod common;

use std::error::Error;

use onesigma_backend::Backend;
use onesigma_backend_cpu::CpuBackend;
use onesigma_backend_wgpu::Options;
use onesigma_ops::recipes;
use onesigma_train::batch::Batch;
use onesigma_train::config::ModelConfig;
use onesigma_train::model::Gpt;
use onesigma_train::optimizer::Optimizer;
use onesigma_train::program::{Settings, Target, build};
use onesigma_train::session::Session;

type Outcome = Result<(), Box<dyn Error>>;

/// Losses of a GPT of one layer over a text with a pattern.
fn losses(backend: &dyn Backend, recipe: &str, steps: usize) -> Result<Vec<f32>, Box<dyn Error>> {
    const SEQ: usize = 16;
    const BATCH: usize = 2;
    let recipe = recipes::load(recipe)?;
    let parametrisation = recipes::parametrisation(&recipe);
    let size = ModelConfig { layers: 1, heads: 2, hidden: 32, seq: SEQ, ..ModelConfig::default() };
    let model = Gpt::new(&size, parametrisation)?;
    let settings = Settings {
        batch: BATCH,
        seq: SEQ,
        vocabulary: 256,
        accumulate: 1,
        optimizer: Optimizer::AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, decay: 0.1 },
        clip: None,
    };
    let supports = |op: &_, inputs: &[_], output| backend.supports(op, inputs, output);
    let target = Target { supports: &supports, strict: false };
    let program = build(&model, &recipe, settings, target)?;
    let engine = backend.compile(&program.program)?;
    let mut session = Session::new(program, engine);
    session.init(3)?;
    let batches: Vec<Batch> = (0..steps)
        .map(|step| {
            let token = |i: usize| ((i * i * 7 + i * 5 + step * 13) % 61) as u32;
            let (inputs, targets) = ((0..BATCH * SEQ).map(token), (1..=BATCH * SEQ).map(token));
            Batch {
                step: step as u64,
                inputs: inputs.collect(),
                targets: targets.collect(),
                ..Batch::default()
            }
        })
        .collect();
    let rate = if parametrisation.is_scaled() { 0.05 } else { 1e-3 };
    let mut losses = Vec::new();
    // Ten steps a call, as `onesigma train` does.
    for (call, batches) in batches.chunks(10).enumerate() {
        let rates = vec![rate; batches.len()];
        losses.extend(session.train(10 * call as u64, &rates, batches)?);
    }
    Ok(losses)
}

fn follows(recipe: &str, steps: usize, allowed: f32) -> Outcome {
    let Some(backend) = common::backend(&Options::default()) else { return Ok(()) };
    let (expected, found) =
        (losses(&CpuBackend::new(), recipe, steps)?, losses(&backend, recipe, steps)?);
    let mut largest = 0.0_f32;
    for (found, expected) in found.iter().zip(&expected) {
        largest = largest.max((found - expected).abs() / expected.abs());
    }
    println!("{recipe}: losses differ by {largest:.1e} at most in {steps} steps");
    assert!(largest <= allowed, "{recipe}: {largest}");
    assert!(expected[steps - 1] < 0.9 * expected[0], "{recipe} does not learn: {expected:?}");
    Ok(())
}

#[test]
fn f32_follows_the_cpu() -> Outcome {
    follows("f32", 40, 1e-4)
}

#[test]
fn bf16_follows_the_cpu() -> Outcome {
    follows("bf16", 40, 0.02)
}

/// Sums in another order round a code up or down now and then: the tolerance of the suite for the
/// loss of a step in narrow formats.
#[test]
fn unit_fp8_follows_the_cpu_for_200_steps() -> Outcome {
    follows("unit-fp8", 200, onesigma_conformance::tolerance::NARROW_LOSS as f32)
}
