//! Recomputation on graphs of this crate alone: sound plans, the same ops, no more than needed.

mod common;

use common::replay;
use onesigma_graph::passes::hoist::hoist;
use onesigma_graph::passes::recompute::{Fitted, fit, is_repeated};
use onesigma_graph::{
    AdamWConfig, DType, Distribution, Error, Graph, Module, Node, Op, Program, ReduceKind, Role,
    SlotKind, ValueId, autodiff,
};
use std::collections::BTreeMap;

const WIDTH: usize = 16;
const ROWS: usize = 64;

/// A step of `layers` times matrix product, tanh and dropout, with AdamW.
fn step(layers: usize) -> Result<Program, Error> {
    let mut module = Module::new();
    module.seed_slot()?;
    let step = module.step_slot()?;
    let lr = module.slot("lr", SlotKind::Input, [], DType::F32, Role::Statistic)?;
    let x = module.slot("x", SlotKind::Input, [ROWS, WIDTH], DType::F32, Role::Data)?;
    let loss_slot = module.slot("loss", SlotKind::Output, [], DType::F32, Role::Statistic)?;
    let mut graph = Graph::new();
    let mut y = module.read(&mut graph, x);
    let (mut slots, mut weights) = (Vec::new(), Vec::new());
    for layer in 0..layers {
        let state = |module: &mut Module, suffix: &str, role| {
            let name = format!("w{layer}{suffix}");
            module.slot(&name, SlotKind::State, [WIDTH, WIDTH], DType::F32, role)
        };
        let own = [
            state(&mut module, "", Role::MasterWeight)?,
            state(&mut module, ".m", Role::FirstMoment)?,
            state(&mut module, ".v", Role::SecondMoment)?,
        ];
        let weight = module.read(&mut graph, own[0]);
        let product = graph.matmul(y, weight).named("product").one()?;
        let active = graph.map(&[product], |x| x[0].tanh())?.named("tanh").one()?;
        let distribution = Distribution::Bernoulli { p: 0.9 };
        let op = Op::Random { distribution, shape: [ROWS, WIDTH].into() };
        let mask = graph.op(op, &[]).named("mask").one()?;
        y = graph.map(&[active, mask], |x| x[0].clone() * x[1].clone())?.named("dropped").one()?;
        slots.push(own);
        weights.push(weight);
    }
    let loss = graph.reduce(ReduceKind::Sum, &[y], &[0, 1], false, |y| y[0].square())?.one()?;
    let gradients = autodiff::gradients(&mut graph, loss, &weights, None)?;
    let (lr, step) = (module.read(&mut graph, lr), module.read(&mut graph, step));
    let config = AdamWConfig { beta1: 0.9, beta2: 0.99, eps: 1e-8, decay: 0.0, lr_scale: 1.0 };
    for ((own, weight), gradient) in slots.into_iter().zip(weights).zip(gradients) {
        let [m, v] = [own[1], own[2]].map(|slot| module.read(&mut graph, slot));
        let inputs = [weight, gradient, m, v, lr, step, lr];
        let updated = graph.op(Op::AdamW(config), &inputs).named("adamw").all()?;
        for (slot, value) in own.into_iter().zip(updated) {
            graph.write(slot, value);
        }
    }
    graph.write(loss_slot, loss);
    module.entry("train_step", graph)?;
    Program::new(module)
}

/// A product costs as much as `WIDTH` element-wise ops.
fn seconds(graph: &Graph, node: &Node) -> f64 {
    let numel = graph.value(node.outputs[0]).shape.numel() as f64;
    match node.op {
        Op::Slot(_) | Op::Reshape { .. } => 0.0,
        Op::MatMul { .. } => numel * WIDTH as f64,
        _ => numel,
    }
}

fn least(program: &Program) -> usize {
    match fit(program, 1, &seconds) {
        Err(Error::Memory { least_bytes, .. }) => least_bytes,
        other => panic!("{other:?}"),
    }
}

/// What a node computes, by its expression over slots and random streams.
fn meaning(graph: &Graph, value: ValueId, known: &mut BTreeMap<ValueId, u64>) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    if let Some(&meaning) = known.get(&value) {
        return meaning;
    }
    let node = graph.node(graph.value(value).producer);
    let inputs: Vec<u64> = node.inputs.iter().map(|&input| meaning(graph, input, known)).collect();
    let random = matches!(node.op, Op::Random { .. }).then_some(node.stream);
    let mut hasher = DefaultHasher::new();
    format!("{:?} {inputs:?} {:?} {random:?}", node.op, node.alpha).hash(&mut hasher);
    graph.value(value).output.hash(&mut hasher);
    let meaning = hasher.finish();
    known.insert(value, meaning);
    meaning
}

fn meanings(program: &Program) -> Vec<(String, u64)> {
    let graph = &program.entries()[0].graph;
    let mut known = BTreeMap::new();
    let writes = graph.writes().iter();
    writes.map(|&(slot, value)| (slot.to_string(), meaning(graph, value, &mut known))).collect()
}

fn repeated(program: &Program) -> usize {
    program.entries()[0].graph.nodes().iter().filter(|node| is_repeated(node)).count()
}

#[test]
fn every_budget_down_to_the_least_is_kept_with_the_same_results() -> Result<(), Error> {
    for layers in [1, 2, 5, 12] {
        let program = step(layers)?;
        let (full, least) = (program.arena_bytes(), least(&program));
        assert!(least <= full, "{layers} layers: {least} of {full}");
        for part in 0..=16 {
            let budget = least + (full - least) * part / 16;
            let Fitted { program: fitted, entries } = fit(&program, budget, &seconds)?;
            assert!(fitted.arena_bytes() <= budget, "{layers} layers, {budget} of {full}");
            assert_eq!(meanings(&fitted), meanings(&program));
            replay(&fitted, &fitted.entries()[0]).expect("nothing needed is overwritten");
            assert_eq!(part == 16, entries.is_empty(), "the whole program fits as it is");
        }
    }
    Ok(())
}

/// Layers of which only the first tensor of each is needed can be kept in few: the memory of twelve
/// layers comes down to less than a third.
#[test]
fn deep_networks_shrink() -> Result<(), Error> {
    let program = step(12)?;
    let temporary = program.entries()[0].temporary_bytes;
    let least = least(&program) - program.slot_bytes();
    assert!(3 * least < temporary, "{least} of {temporary} bytes");
    Ok(())
}

#[test]
fn cheap_ops_are_repeated_before_dear_ones() -> Result<(), Error> {
    let program = step(6)?;
    let (full, least) = (program.arena_bytes(), least(&program));
    let Fitted { program: fitted, entries } = fit(&program, least.midpoint(full), &seconds)?;
    let graph = &fitted.entries()[0].graph;
    let products = |repeats: bool| {
        let nodes = graph.nodes().iter().filter(|node| is_repeated(node) == repeats);
        nodes.filter(|node| matches!(node.op, Op::MatMul { .. })).count()
    };
    assert_eq!(products(true), 0, "a mask or a tanh would have done");
    assert!(repeated(&fitted) > 0 && entries[0].repeated_seconds < 0.1 * entries[0].seconds);
    Ok(())
}

#[test]
fn what_cannot_be_kept_is_refused_with_the_least() -> Result<(), Error> {
    let program = step(4)?;
    let least = least(&program);
    assert!(fit(&program, least, &seconds).is_ok());
    let Err(error) = fit(&program, least - least / 20, &seconds) else {
        panic!("less than the least is enough");
    };
    let text = error.to_string();
    assert!(text.contains("entry `train_step`") && text.contains("at least"), "{text}");
    // Slots alone are too much.
    assert!(matches!(fit(&program, 64, &seconds), Err(Error::Memory { budget_bytes: 64, .. })));
    Ok(())
}

#[test]
fn updates_run_right_after_their_gradients() -> Result<(), Error> {
    let program = step(4)?;
    let graph = &program.entries()[0].graph;
    let hoisted = hoist(graph);
    let position = |graph: &Graph, name: &str| {
        let named = graph.nodes().iter().filter(|node| !matches!(node.op, Op::Slot(_)));
        named
            .enumerate()
            .filter(|(_, node)| node.name == name)
            .map(|(at, _)| at)
            .collect::<Vec<_>>()
    };
    assert_eq!(graph.nodes().len(), hoisted.nodes().len());
    let (before, after) = (position(graph, "adamw"), position(&hoisted, "adamw"));
    assert!(before[0] > *position(graph, "grad(product)").last().expect("some"));
    assert!(after[0] < position(&hoisted, "grad(product)")[3], "{after:?}");
    // The last update of all still comes after everything that reads the old weights.
    let mut module = Module::new();
    for slot in program.slots() {
        module.slot(&slot.name, slot.kind, slot.shape.clone(), slot.dtype, slot.role)?;
    }
    module.entry("train_step", hoisted)?;
    let hoisted = Program::new(module)?;
    replay(&hoisted, &hoisted.entries()[0]).expect("nothing needed is overwritten");
    assert!(hoisted.arena_bytes() <= program.arena_bytes());
    let written = |program: &Program| {
        let entry = &program.entries()[0];
        let values = entry.graph.writes().iter();
        values
            .filter(|&&(slot, value)| entry.places[value.index()] == program.slot_place(slot))
            .count()
    };
    assert_eq!(written(&hoisted), written(&program), "weights are still made in their slots");
    Ok(())
}
