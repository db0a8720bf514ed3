//! Small training steps: several ops, state, and the optimiser, over several runs.

use crate::check::{Operand, decode, text};
use crate::{Make, Verdict, skipped, tolerance, trial};
use libtest_mimic::Trial;
use onesigma_backend::{Backend, Engine, RefBackend};
use onesigma_format::Format;
use onesigma_graph::passes::{apply_recipe::apply_recipe, clean::clean, legalise::legalise};
use onesigma_graph::recipe::{Recipe, Rule, Use};
use onesigma_graph::{
    AdamWConfig, DType, EntryId, Graph, Module, Op, Program, Role, SlotId, SlotKind, autodiff,
};

const STEPS: usize = 4;

/// Embedding, attention, a gated layer and a classifier, trained by AdamW.
struct Training {
    module: Module,
    weights: Vec<SlotId>,
    inputs: Vec<(SlotId, Operand)>,
    loss: SlotId,
}

fn training() -> onesigma_graph::Result<Training> {
    const D: usize = 16;
    let mut module = Module::new();
    let seed = module.seed_slot()?;
    let step = module.step_slot()?;
    let mut slot = |name: &str, shape: &[usize], dtype, role| {
        module.slot(name, SlotKind::Input, shape.to_vec(), dtype, role)
    };
    let lr = slot("lr", &[], DType::F32, Role::Statistic)?;
    let ids = slot("ids", &[2, 6], DType::U32, Role::Data)?;
    let targets = slot("targets", &[2, 6], DType::U32, Role::Data)?;
    let loss_slot = module.slot("loss", SlotKind::Output, [], DType::F32, Role::Statistic)?;
    let mut graph = Graph::new();
    let [step_v, lr_v, ids_v, targets_v] =
        [step, lr, ids, targets].map(|slot| module.read(&mut graph, slot));
    let mut parameters = Vec::new();
    for (name, shape) in
        [("table", [11, D]), ("qkv", [D, 3 * D]), ("gate", [D, D]), ("readout", [11, D])]
    {
        let mut state = |suffix: &str, role| {
            module.slot(&format!("{name}{suffix}"), SlotKind::State, shape, DType::F32, role)
        };
        parameters.push([
            state("", Role::MasterWeight)?,
            state(".m", Role::FirstMoment)?,
            state(".v", Role::SecondMoment)?,
        ]);
    }
    let reads: Vec<[_; 3]> =
        parameters.iter().map(|slots| slots.map(|slot| module.read(&mut graph, slot))).collect();
    let [table, qkv, gate, readout] = [0, 1, 2, 3].map(|n: usize| reads[n][0]);
    let x = graph.op(Op::Gather, &[table, ids_v]).one()?;
    let normed = graph.op(Op::RmsNorm { eps: 1e-5 }, &[x]).one()?;
    let all = graph.matmul(normed, qkv).alpha(0.25).beta(&[0.25, 0.3]).one()?;
    let mut heads = Vec::new();
    for n in 0..3 {
        let part = graph.op(Op::Slice { axis: 2, start: n * D, len: D }, &[all]).one()?;
        heads.push(graph.reshape(part, [2, 6, 2, D / 2])?);
    }
    let mixed = graph.op(Op::Attention { causal: true, logit_scale: 0.35 }, &heads).all()?[0];
    let mixed = graph.reshape(mixed, [2, 6, D])?;
    let gated = graph.matmul(mixed, gate).alpha(0.25).beta(&[0.25, 0.3]).one()?;
    let sum = graph.map(&[gated, x], |x| x[0].clone() * x[0].sigmoid() + x[1].clone())?.one()?;
    let linear = Op::MatMul { transpose_left: false, transpose_right: true };
    let logits = graph.op(linear, &[sum, readout]).one()?;
    let loss = graph.op(Op::CrossEntropy { mult: 1.0, mean: true }, &[logits, targets_v]).one()?;
    let weights: Vec<_> = reads.iter().map(|read| read[0]).collect();
    let gradients = autodiff::gradients(&mut graph, loss, &weights, None)?;
    let one = onesigma_graph::expr::Expr::new(0, |_| 1.0.into());
    let factor = Op::Map { expr: one, shape: onesigma_graph::Shape::scalar() };
    let factor = graph.op(factor, &[]).role(Role::Statistic).one()?;
    let config = AdamWConfig { beta1: 0.9, beta2: 0.99, eps: 1e-6, decay: 0.01, lr_scale: 1.0 };
    for ((slots, read), gradient) in parameters.iter().zip(&reads).zip(gradients) {
        let inputs = [read[0], gradient, read[1], read[2], lr_v, step_v, factor];
        let updated = graph.op(Op::AdamW(config), &inputs).all()?;
        for (&slot, value) in slots.iter().zip(updated) {
            graph.write(slot, value);
        }
    }
    graph.write(loss_slot, loss);
    module.entry("train_step", graph)?;
    let words =
        |words: &[f64]| Operand { dtype: DType::U32, ..Operand::values([words.len()], words) };
    let inputs = vec![
        (seed, words(&[1.0, 2.0])),
        (step, words(&[0.0, 1.0, 2.0, 3.0])),
        (lr, Operand::values([], &[0.01])),
        (ids, Operand::ids([STEPS, 2, 6], 11)),
        (targets, Operand::ids([STEPS, 2, 6], 11)),
    ];
    let weights = parameters.iter().map(|slots| slots[0]).collect();
    Ok(Training { module, weights, inputs, loss: loss_slot })
}

/// Losses of all steps and the weights behind them.
fn train(
    engine: &mut dyn Engine,
    program: &Program,
    training: &Training,
) -> onesigma_backend::Result<(Vec<f64>, Vec<Vec<f64>>)> {
    for (n, &slot) in training.weights.iter().enumerate() {
        let info = &program.slots()[slot.index()];
        let operand = Operand { dtype: info.dtype, ..Operand::normal(info.shape.clone()) };
        engine.write(slot, &operand.bytes(n as u32 + 20))?;
    }
    for (n, (slot, operand)) in training.inputs.iter().enumerate() {
        engine.write(*slot, &operand.bytes(n as u32))?;
    }
    engine.run(EntryId::new(0), STEPS)?;
    let mut read = |slot: SlotId, frames: usize| -> onesigma_backend::Result<Vec<f64>> {
        let info = &program.slots()[slot.index()];
        let mut bytes = vec![0; info.bytes() * frames];
        engine.read(slot, &mut bytes)?;
        Ok(decode(info.dtype, &bytes))
    };
    let losses = read(training.loss, STEPS)?;
    let weights = training.weights.iter().map(|&slot| read(slot, 1)).collect::<Result<_, _>>()?;
    Ok((losses, weights))
}

fn step_agrees(backend: &dyn Backend, recipe: Option<Recipe>) -> Verdict {
    let mut training = training().map_err(text)?;
    training.module.rewrite(|graph| Ok(clean(graph))).map_err(text)?;
    if let Some(recipe) = &recipe {
        training.module.rewrite(|graph| apply_recipe(graph, recipe)).map_err(text)?;
    }
    let reference = Program::new(training.module.clone()).map_err(text)?;
    let supports = |op: &_, inputs: &[_], output| backend.supports(op, inputs, output);
    let legal = |graph: &Graph| Ok(legalise(graph, &supports, false)?.graph);
    training.module.rewrite(legal).map_err(text)?;
    let program = Program::new(training.module.clone()).map_err(text)?;
    let mut engine = backend.compile(&program).map_err(text)?;
    let (losses, weights) = train(&mut *engine, &program, &training).map_err(text)?;
    let mut engine = RefBackend::rounding().executor(&reference).map_err(text)?;
    let (expected, expected_weights) = train(&mut engine, &reference, &training).map_err(text)?;
    let allowed = if recipe.is_some() { tolerance::NARROW_LOSS } else { tolerance::CHAIN.each };
    for (step, (found, expected)) in losses.iter().zip(&expected).enumerate() {
        let near = (found - expected).abs() <= allowed * expected.abs();
        if !near {
            return Err(format!("loss of step {step} is {found}, expected {expected}"));
        }
    }
    if recipe.is_some() {
        return Ok(());
    }
    for (found, expected) in weights.iter().flatten().zip(expected_weights.iter().flatten()) {
        // Adam divides by the gradient's own size, so that tiny gradients lose their precision:
        // a hundredth of one step's length.
        let near = (found - expected).abs() <= 1e-4;
        if !near {
            return Err(format!("a weight is {found} after {STEPS} steps, expected {expected}"));
        }
    }
    Ok(())
}

/// Why a backend cannot run a recipe, if it cannot.
fn obstacle(backend: &dyn Backend, recipe: Option<&Recipe>) -> Option<String> {
    let supports = |op: &_, inputs: &[_], output| backend.supports(op, inputs, output);
    let legal = |training: Training| -> onesigma_graph::Result<()> {
        for entry in training.module.entries() {
            let graph = match recipe {
                Some(recipe) => apply_recipe(&clean(&entry.graph), recipe)?,
                None => clean(&entry.graph),
            };
            legalise(&graph, &supports, false)?;
        }
        Ok(())
    };
    training().and_then(legal).err().map(|error| error.to_string())
}

pub(crate) fn trials(make: Make, backend: &dyn Backend) -> Vec<Trial> {
    let mut fp8 = Recipe::uniform("fp8", Format::F16);
    for (role, format) in [
        (Role::Weight, Format::E4M3),
        (Role::Activation, Format::E4M3),
        (Role::ActivationGrad, Format::E5M2),
    ] {
        fp8.rules.insert(0, Rule::new(role, Use::Matmul, format));
    }
    let recipes = [
        ("f32", None),
        ("bf16", Some(Recipe::uniform("bf16", Format::BF16))),
        ("f16", Some(Recipe::uniform("f16", Format::F16))),
        ("fp8", Some(fp8)),
    ];
    recipes
        .into_iter()
        .map(|(name, recipe)| {
            let title = format!("step::{name}");
            // Every backend runs F32; other recipes are its choice.
            match obstacle(backend, recipe.as_ref()).filter(|_| recipe.is_some()) {
                Some(reason) => skipped(title, &reason),
                None => trial(title, make, move |backend| step_agrees(backend, recipe)),
            }
        })
        .collect()
}
