//! Times training steps of a GPT on the GPU: one line of JSON for a size and a recipe.
//!
//! The model is the one of `onesigma train` (RMS norms without parameters, no biases), at any
//! size. With `--profile` every kernel is timed on its own.
#![allow(clippy::print_stdout)] // it is a program

use std::error::Error;
use std::time::Instant;

use clap::Parser;
use onesigma_backend::Backend;
use onesigma_backend_tch::{TchBackend, cuda_memory, cuda_supports};
use onesigma_models::config::Activation;
use onesigma_ops::recipes;
use onesigma_train::batch::Batch;
use onesigma_train::config::ModelConfig;
use onesigma_train::model::Gpt;
use onesigma_train::optimizer::Optimizer;
use onesigma_train::program::{Settings, Target, build};
use onesigma_train::session::Session;

#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value = "unit-fp8")]
    recipe: String,
    #[arg(long, default_value_t = 2048)]
    hidden: usize,
    #[arg(long, default_value_t = 8)]
    layers: usize,
    #[arg(long, default_value_t = 16)]
    heads: usize,
    #[arg(long, default_value_t = 1024)]
    seq: usize,
    #[arg(long, default_value_t = 16)]
    batch: usize,
    #[arg(long, default_value_t = 32768)]
    vocab: usize,
    /// Steps of one call of the engine.
    #[arg(long, default_value_t = 5)]
    steps: usize,
    /// Calls that are timed, after two that are not.
    #[arg(long, default_value_t = 5)]
    calls: usize,
    /// `cuda` or `cpu`.
    #[arg(long, default_value = "cuda")]
    backend: String,
    #[arg(long)]
    profile: bool,
    /// Memory of the GPU that may be used, in GiB; what does not fit is computed again.
    #[arg(long)]
    memory: Option<f64>,
    /// Only print how much memory the step needs; works without a GPU.
    #[arg(long)]
    plan: bool,
}

fn backend(a: &Arguments, limit: Option<u64>) -> Result<Box<dyn Backend>, Box<dyn Error>> {
    if a.backend != "cuda" {
        return Ok(Box::new(onesigma_backend_cpu::CpuBackend::new()));
    }
    let mut backend = TchBackend::cuda()?;
    if a.profile {
        backend = backend.profiled();
    }
    if let Some(limit) = limit {
        backend = backend.within(limit);
    }
    Ok(Box::new(backend))
}

fn main() -> Result<(), Box<dyn Error>> {
    let a = Arguments::parse();
    let recipe = recipes::load(&a.recipe)?;
    let parametrisation = recipes::parametrisation(&recipe);
    let (layers, heads, hidden, seq) = (a.layers, a.heads, a.hidden, a.seq);
    let size = ModelConfig { layers, heads, hidden, seq, ..ModelConfig::default() };
    let mut config = Gpt::architecture(&size, a.vocab, parametrisation);
    // As in the peers' script: GELU in its form with tanh.
    config.activation_function = Activation::GeluNew;
    let model = Gpt::from_config(config, parametrisation)?;
    let settings = Settings {
        batch: a.batch,
        seq: a.seq,
        vocabulary: a.vocab,
        accumulate: 1,
        optimizer: Optimizer::AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, decay: 0.01 },
        clip: None,
    };
    let limit = a.memory.map(|gib| (gib * f64::from(1 << 30)) as u64);
    let start = Instant::now();
    let opened = if a.plan { None } else { Some(backend(&a, limit)?) };
    let supports = |op: &_, inputs: &[_], output| match &opened {
        Some(backend) => backend.supports(op, inputs, output),
        None => cuda_supports(op, inputs, output),
    };
    let program = build(&model, &recipe, settings, Target { supports: &supports, strict: false })?;
    let parameters = program.parameter_count;
    let predicted = cuda_memory(&program.program, limit)?;
    let Some(backend) = opened else {
        println!("{parameters} parameters, {predicted}");
        return Ok(());
    };
    let engine = backend.compile(&program.program)?;
    let mut session = Session::new(program, engine);
    session.init(0)?;
    let prepared = start.elapsed().as_secs_f64();

    let numel = a.batch * a.seq;
    let batches: Vec<Batch> = (0..a.steps)
        .map(|step| {
            let token = |i: usize| {
                let mixed = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ step as u64;
                (mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 33) as u32 % a.vocab as u32
            };
            Batch {
                step: step as u64,
                inputs: (0..numel).map(token).collect(),
                targets: (1..=numel).map(token).collect(),
                more: Vec::new(),
            }
        })
        .collect();
    let rate = if parametrisation.is_scaled() { 0.01 } else { 1e-4 };
    let rates = vec![rate; a.steps];
    let mut losses = session.train(0, &rates, &batches)?;
    losses.extend(session.train(a.steps as u64, &rates, &batches)?);
    let mut times = Vec::new();
    for call in 0..a.calls {
        let start = Instant::now();
        let first = (call + 2) * a.steps;
        losses.extend(session.train(first as u64, &rates, &batches)?);
        times.push(start.elapsed().as_secs_f64() * 1e3 / a.steps as f64);
    }
    times.sort_by(f64::total_cmp);
    let report = session.report();
    let result = serde_json::json!({
        "recipe": a.recipe, "backend": a.backend, "device": backend.caps().device,
        "hidden": a.hidden, "layers": a.layers, "seq": a.seq, "batch": a.batch, "vocab": a.vocab,
        "parameters": parameters, "ms": times[times.len() / 2], "least_ms": times[0],
        "planned_gib": report.planned_bytes as f64 / f64::from(1 << 30),
        "predicted_gib": predicted.total() as f64 / f64::from(1 << 30),
        "recomputed": predicted.recomputed,
        "allocated_gib": report.allocated_bytes as f64 / f64::from(1 << 30),
        "prepared_s": prepared, "losses": losses,
    });
    println!("{result}");
    for note in report.notes {
        println!("{note}");
    }
    Ok(())
}
