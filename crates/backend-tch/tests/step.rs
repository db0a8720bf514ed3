//! A small GPT trains on every device of this crate as it does on the CPU backend.

use std::error::Error;

use onesigma_backend::Backend;
use onesigma_backend_cpu::CpuBackend;
use onesigma_backend_tch::TchBackend;
use onesigma_ops::recipes;
use onesigma_train::batch::Batch;
use onesigma_train::config::ModelConfig;
use onesigma_train::model::Gpt;
use onesigma_train::optimizer::Optimizer;
use onesigma_train::program::{Settings, Target, build};
use onesigma_train::session::Session;

const STEPS: usize = 6;

/// Losses of some steps, and how much memory was planned.
fn losses(backend: &dyn Backend, recipe: &str) -> Result<Vec<f32>, Box<dyn Error>> {
    let recipe = recipes::load(recipe)?;
    let parametrisation = recipes::parametrisation(&recipe);
    // Sizes at which FP8 products run on tensor cores, with transposed copies made by tiles.
    let size = ModelConfig { layers: 1, heads: 2, hidden: 128, seq: 64 };
    let model = Gpt::new(&size, parametrisation)?;
    let settings = Settings {
        batch: 2,
        seq: 64,
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
    let batches: Vec<Batch> = (0..STEPS)
        .map(|step| {
            let token = |i: usize| ((i * 7 + step * 13) % 97) as u32;
            let (inputs, targets) = ((0..128).map(token), (1..129).map(token));
            Batch { step: step as u64, inputs: inputs.collect(), targets: targets.collect() }
        })
        .collect();
    let rate = if parametrisation.is_scaled() { 0.1 } else { 1e-3 };
    let rates = [rate; STEPS];
    // In two calls, so that the second replays.
    let mut losses = session.train(0, &rates[..3], &batches[..3])?;
    losses.extend(session.train(3, &rates[3..], &batches[3..])?);
    Ok(losses)
}

fn follows(backend: &dyn Backend) -> Result<(), Box<dyn Error>> {
    // Sums in another order: in f32 a few roundings, in narrow formats a code up or down.
    for (recipe, allowed) in [("f32", 1e-4), ("bf16", 0.01), ("unit-fp8", 0.01)] {
        let (expected, found) = (losses(&CpuBackend::new(), recipe)?, losses(backend, recipe)?);
        for (step, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let near = (found - expected).abs() <= allowed * expected.abs();
            assert!(near, "{recipe}, step {step}: {found}, expected {expected}");
        }
        assert!(expected[STEPS - 1] < expected[0], "{recipe} does not learn: {expected:?}");
    }
    Ok(())
}

#[test]
fn on_the_cpu_of_libtorch() -> Result<(), Box<dyn Error>> {
    follows(&TchBackend::cpu())
}

#[test]
#[cfg(feature = "emulate")]
fn on_the_emulated_gpu() -> Result<(), Box<dyn Error>> {
    follows(&TchBackend::emulated()?)
}

#[test]
fn on_the_gpu() -> Result<(), Box<dyn Error>> {
    match TchBackend::cuda() {
        Ok(backend) => follows(&backend),
        Err(error @ onesigma_backend::Error::Unavailable { .. }) => {
            println!("skipped: {error}");
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}
