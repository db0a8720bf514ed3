//! A unit-scaled multi-layer perceptron of one's own: layers on a graph, gradients, an update, and
//! one program that trains it on a function.
//!
//! ```text
//! cargo run --release -p onesigma-examples --example unit_scaled_mlp
//! ```
#![allow(clippy::print_stdout)]

use std::error::Error;

use onesigma::backend::{Backend, Engine};
use onesigma::backends;
use onesigma::format::{Noise, philox};
use onesigma::graph::passes::{apply_recipe::apply_recipe, clean::clean};
use onesigma::graph::{DType, Graph, Module, Program, Role, SlotKind, ValueId, autodiff};
use onesigma::ops::{
    Constraint, GeluForm, Linear, Parametrisation, gelu, linear, mse_loss, recipes, verify,
};

const BATCH: usize = 256;
const WIDTHS: [usize; 4] = [16, 64, 64, 1];
const RATE: f64 = 0.02;
const WEIGHTS: [&str; 3] = ["w0", "w1", "w2"];

/// `x [BATCH, 16]` to a prediction `[BATCH, 1]`: three linear layers with GELU between them.
fn mlp(graph: &mut Graph, x: ValueId, weights: &[ValueId]) -> onesigma::ops::Result<ValueId> {
    let p = Parametrisation::Unit;
    let mut x = x;
    for (at, &weight) in weights.iter().enumerate() {
        if at > 0 {
            x = gelu(graph, p, x, GeluForm::Tanh, 1.0, Constraint::ToOutputScale)?;
        }
        x = linear(graph, p, x, weight, None, Linear::default())?;
    }
    Ok(x)
}

/// The training step as one program: loss, gradients and new weights, in the formats of a recipe.
fn program(recipe: &str) -> Result<Program, Box<dyn Error>> {
    let mut module = Module::new();
    let mut graph = Graph::new();
    let x = module.slot("x", SlotKind::Input, [BATCH, WIDTHS[0]], DType::F32, Role::Data)?;
    let y = module.slot("y", SlotKind::Input, [BATCH, 1], DType::F32, Role::Data)?;
    let out = module.slot("loss", SlotKind::Output, [], DType::F32, Role::Statistic)?;
    let mut slots = Vec::new();
    for (name, pair) in WEIGHTS.iter().zip(WIDTHS.windows(2)) {
        let shape = [pair[1], pair[0]]; // [fan_out, fan_in]
        slots.push(module.slot(name, SlotKind::State, shape, DType::F32, Role::MasterWeight)?);
    }
    let (x, y) = (module.read(&mut graph, x), module.read(&mut graph, y));
    let weights: Vec<ValueId> = slots.iter().map(|&slot| module.read(&mut graph, slot)).collect();

    let prediction = mlp(&mut graph, x, &weights)?;
    let loss = mse_loss(&mut graph, Parametrisation::Unit, prediction, y, true)?;
    // Scales differ between forward and backward; the verifier proves that they may.
    verify(&graph, loss, &weights)?;
    let gradients = autodiff::gradients(&mut graph, loss, &weights, None)?;
    for ((slot, weight), gradient) in slots.into_iter().zip(weights).zip(gradients) {
        let step = |x: &[onesigma::graph::expr::Term]| x[0].clone() - x[1].clone() * RATE;
        let new = graph.map(&[weight, gradient], step)?.role(Role::MasterWeight).one()?;
        graph.write(slot, new);
    }
    graph.write(out, loss);
    module.entry("train_step", apply_recipe(&clean(&graph), &recipes::load(recipe)?)?)?;
    Ok(Program::new(module)?)
}

/// Trains for `steps` steps; gives the loss before each.
fn train(backend: &dyn Backend, recipe: &str, steps: u32) -> Result<Vec<f32>, Box<dyn Error>> {
    let program = program(recipe)?;
    let mut engine = backend.compile(&program)?;
    let normal = |count: usize, tensor: u32| {
        let mut values = vec![0.0_f32; count];
        philox::fill_normal(Noise { tensor, ..Noise::default() }, &mut values);
        values
    };
    let write = |engine: &mut dyn Engine, name: &str, values: &[f32]| {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        engine.write(program.find_slot(name)?, &bytes)
    };
    for (at, (name, pair)) in WEIGHTS.iter().zip(WIDTHS.windows(2)).enumerate() {
        write(&mut *engine, name, &normal(pair[0] * pair[1], 1000 + at as u32))?; // σ = 1
    }
    let entry = program.find_entry("train_step")?;
    let mut losses = Vec::new();
    for step in 0..steps {
        let x = normal(BATCH * WIDTHS[0], step);
        let y: Vec<f32> = x.chunks(WIDTHS[0]).map(|x| (x[0] * x[1]).tanh() + x[2]).collect();
        write(&mut *engine, "x", &x)?;
        write(&mut *engine, "y", &y)?;
        engine.run(entry, 1)?;
        let mut loss = [0; 4];
        engine.read(program.find_slot("loss")?, &mut loss)?;
        losses.push(f32::from_le_bytes(loss));
    }
    Ok(losses)
}

fn main() -> Result<(), Box<dyn Error>> {
    let backend = backends::open("cpu")?;
    for recipe in ["unit-f32", "unit-fp8"] {
        let losses = train(&*backend, recipe, 400)?;
        let end = losses[losses.len() - 20..].iter().sum::<f32>() / 20.0;
        println!("{recipe}: loss {:.3} at first, {end:.3} at the end", losses[0]);
    }
    Ok(())
}

#[test]
fn fp8_learns_as_f32_does() -> Result<(), Box<dyn Error>> {
    let backend = backends::open("cpu")?;
    let end = |recipe| -> Result<f32, Box<dyn Error>> {
        let losses = train(&*backend, recipe, 400)?;
        Ok(losses[380..].iter().sum::<f32>() / 20.0)
    };
    let (f32, fp8) = (end("unit-f32")?, end("unit-fp8")?);
    assert!(f32 < 0.5 && fp8 < 1.2 * f32, "{f32} and {fp8}");
    Ok(())
}
