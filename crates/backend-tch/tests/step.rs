//! A small GPT trains on every device of this crate as it does on the CPU backend.
#![allow(clippy::print_stdout)] // a skip says why

use std::error::Error;

use onesigma_backend::Backend;
use onesigma_backend_cpu::CpuBackend;
use onesigma_backend_tch::{TchBackend, cuda_memory};
use onesigma_graph::passes::legalise::Supports;
use onesigma_ops::recipes;
use onesigma_train::batch::Batch;
use onesigma_train::config::ModelConfig;
use onesigma_train::model::Gpt;
use onesigma_train::optimizer::Optimizer;
use onesigma_train::program::{Settings, Target, TrainingProgram, build};
use onesigma_train::session::Session;

const STEPS: usize = 6;

/// The training program of a small GPT.
fn program(
    supports: &Supports<'_>,
    recipe: &str,
    layers: usize,
) -> Result<TrainingProgram, Box<dyn Error>> {
    let recipe = recipes::load(recipe)?;
    let parametrisation = recipes::parametrisation(&recipe);
    // Sizes at which FP8 products run on tensor cores, with transposed copies made by tiles.
    let size = ModelConfig { layers, heads: 2, hidden: 128, seq: 64, ..ModelConfig::default() };
    let model = Gpt::new(&size, parametrisation)?;
    let settings = Settings {
        batch: 2,
        seq: 64,
        vocabulary: 256,
        accumulate: 1,
        optimizer: Optimizer::AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, decay: 0.1 },
        clip: None,
    };
    Ok(build(&model, &recipe, settings, Target { supports, strict: false })?)
}

/// Losses of some steps.
fn losses(backend: &dyn Backend, recipe: &str, layers: usize) -> Result<Vec<f32>, Box<dyn Error>> {
    let parametrisation = recipes::parametrisation(&recipes::load(recipe)?);
    let supports = |op: &_, inputs: &[_], output| backend.supports(op, inputs, output);
    let program = program(&supports, recipe, layers)?;
    let engine = backend.compile(&program.program)?;
    let mut session = Session::new(program, engine);
    session.init(3)?;
    let batches: Vec<Batch> = (0..STEPS)
        .map(|step| {
            let token = |i: usize| ((i * 7 + step * 13) % 97) as u32;
            let (inputs, targets) = ((0..128).map(token), (1..129).map(token));
            Batch {
                step: step as u64,
                inputs: inputs.collect(),
                targets: targets.collect(),
                more: Vec::new(),
            }
        })
        .collect();
    // A rate at which steps do not yet amplify a rounding into another path.
    let rate = if parametrisation.is_scaled() { 0.02 } else { 1e-3 };
    let rates = [rate; STEPS];
    // In two calls, so that the second replays.
    let mut losses = session.train(0, &rates[..3], &batches[..3])?;
    losses.extend(session.train(3, &rates[3..], &batches[3..])?);
    Ok(losses)
}

fn follows(backend: &dyn Backend) -> Result<(), Box<dyn Error>> {
    // Sums in another order: in f32 a few roundings, in narrow formats a code up or down.
    for (recipe, allowed) in [("f32", 1e-4), ("bf16", 0.01), ("unit-fp8", 0.01)] {
        let (expected, found) =
            (losses(&CpuBackend::new(), recipe, 1)?, losses(backend, recipe, 1)?);
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

/// With the least memory that it says it needs, a step computes the same bits as with enough.
#[cfg(feature = "emulate")]
#[test]
fn what_is_computed_again_has_the_same_bits() -> Result<(), Box<dyn Error>> {
    for recipe in ["unit-fp8", "bf16"] {
        let needed = |bytes: u64| match losses(&TchBackend::emulated()?.within(bytes), recipe, 2) {
            Ok(_) => Err("a step fits into nothing".into()),
            Err(error) => match error.downcast_ref() {
                Some(&onesigma_backend::Error::OutOfMemory { needed, available }) => {
                    assert_eq!(available, bytes);
                    Ok(needed)
                }
                _ => Err(error),
            },
        };
        let least = needed(1)?;
        let enough = losses(&TchBackend::emulated()?, recipe, 2)?;
        let short = losses(&TchBackend::emulated()?.within(least), recipe, 2)?;
        assert_eq!(short, enough, "{recipe}");
    }
    Ok(())
}

/// Memory is known before a step runs, and computing again saves some of it.
#[test]
fn less_memory_is_planned_where_less_is_allowed() -> Result<(), Box<dyn Error>> {
    for recipe in ["unit-fp8", "bf16"] {
        let program = program(&onesigma_backend_tch::cuda_supports, recipe, 4)?.program;
        let plenty = cuda_memory(&program, None)?;
        let least = cuda_memory(&program, Some(0))?;
        assert_eq!(plenty.recomputed, 0);
        assert!(least.recomputed > 0);
        assert!(least.temporaries * 4 < plenty.temporaries * 3, "{recipe}: {plenty} {least}");
        assert_eq!(least.slots, plenty.slots);
        // A limit that the whole fits changes nothing.
        assert_eq!(cuda_memory(&program, Some(plenty.total() as u64))?, plenty);
    }
    Ok(())
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

#[test]
fn a_machine_without_a_gpu_is_told_what_is_missing() {
    if let Err(error) = TchBackend::cuda() {
        let text = error.to_string();
        assert!(matches!(error, onesigma_backend::Error::Unavailable { .. }), "{text}");
        assert!(["install", "GPU", "driver"].iter().any(|word| text.contains(word)), "{text}");
    }
}
