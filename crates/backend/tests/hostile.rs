//! Programs from outside: damaged ones get an error, never a panic.

use onesigma_backend::{Engine, Error, RefBackend};
use onesigma_format::{Conversion, Format, Overflow, Rounding};
use onesigma_graph::{
    AdamWConfig, DType, Distribution, EntryId, Graph, Module, Op, Program, ReduceKind, Role,
    SlotId, SlotKind, autodiff, print,
};
use proptest::prelude::*;
use serde_json::Value;

/// A program with every kind of op.
fn program() -> Result<Program, onesigma_graph::Error> {
    let mut module = Module::new();
    module.seed_slot()?;
    let step = module.step_slot()?;
    let ids = module.slot("ids", SlotKind::Input, [2, 3], DType::U32, Role::Data)?;
    let lr = module.slot("lr", SlotKind::Input, [], DType::F32, Role::Statistic)?;
    let loss_slot = module.slot("loss", SlotKind::Output, [], DType::F32, Role::Statistic)?;
    let [w, m, v] =
        [("w", Role::MasterWeight), ("m", Role::FirstMoment), ("v", Role::SecondMoment)]
            .map(|(name, role)| module.slot(name, SlotKind::State, [5, 4], DType::F32, role));
    let slots = [w?, m?, v?];
    let mut graph = Graph::new();
    let [ids, lr, step] = [ids, lr, step].map(|slot| module.read(&mut graph, slot));
    let [w, m, v] = slots.map(|slot| module.read(&mut graph, slot));
    let how =
        Conversion { rounding: Rounding::Stochastic { bits: 16 }, overflow: Overflow::Special };
    let narrow = DType::Float(Format::E4M3);
    let x = graph.op(Op::Gather, &[w, ids]).stored_as(narrow, how).one()?;
    let normed = graph.op(Op::LayerNorm { eps: 1e-5 }, &[x]).one()?;
    let left = graph.op(Op::Slice { axis: 2, start: 0, len: 2 }, &[normed]).one()?;
    let right = graph.op(Op::Slice { axis: 2, start: 2, len: 2 }, &[normed]).one()?;
    let joined = graph.op(Op::Concat { axis: 2 }, &[right, left]).one()?;
    let distribution = Distribution::Bernoulli { p: 0.9 };
    let mask = graph.op(Op::Random { distribution, shape: [2, 3, 4].into() }, &[]).one()?;
    let dropped = graph.map(&[joined, mask], |x| x[0].clone() * x[1].clone())?.one()?;
    let heads = graph.reshape(dropped, [2, 3, 2, 2])?;
    let attended = graph
        .op(Op::Attention { causal: true, logit_scale: 0.7 }, &[heads, heads, heads])
        .all()?[0];
    let flat = graph.reshape(attended, [2, 3, 4])?;
    let op = Op::MatMul { transpose_left: false, transpose_right: true };
    let logits = graph.op(op, &[flat, w]).alpha(0.5).one()?;
    let loss = graph.op(Op::CrossEntropy { mult: 1.0, mean: true }, &[logits, ids]).one()?;
    let gradient = autodiff::gradients(&mut graph, loss, &[w], None)?[0];
    let turned = graph.permute(gradient, &[1, 0])?;
    let largest = graph
        .reduce(ReduceKind::Max, &[turned], &[0, 1], false, |x| x[0].abs())?
        .role(Role::Statistic)
        .one()?;
    let factor = graph.map(&[largest], |x| x[0].less(10.0))?.role(Role::Statistic).one()?;
    let config = AdamWConfig { beta1: 0.9, beta2: 0.99, eps: 1e-6, decay: 0.0, lr_scale: 1.0 };
    let updated = graph.op(Op::AdamW(config), &[w, gradient, m, v, lr, step, factor]).all()?;
    for (slot, value) in slots.into_iter().zip(updated) {
        graph.write(slot, value);
    }
    graph.write(loss_slot, loss);
    module.entry("train_step", graph)?;
    Program::new(module)
}

/// Every number and word of a document, by visiting it in order.
fn visit(value: &mut Value, f: &mut impl FnMut(&mut Value)) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| visit(item, f)),
        Value::Object(fields) => fields.values_mut().for_each(|item| visit(item, f)),
        Value::Number(_) | Value::Bool(_) => f(value),
        _ => {}
    }
}

fn damaged(document: &Value, changes: &[(usize, u8)]) -> Option<Program> {
    let mut document = document.clone();
    let mut count = 0;
    visit(&mut document, &mut |_| count += 1);
    for &(at, kind) in changes {
        let mut index = 0;
        visit(&mut document, &mut |value| {
            if index == at % count {
                *value = match (kind % 12, value.is_boolean()) {
                    (_, true) => Value::Bool(kind % 2 == 0),
                    (0, _) => 0.into(),
                    (1, _) => 1.into(),
                    (2, _) => 2.into(),
                    (3, _) => 3.into(),
                    (4, _) => 64.into(),
                    (5, _) => 255.into(),
                    (6, _) => u32::MAX.into(),
                    (7, _) => (1_u64 << 63).into(),
                    (8, _) => u64::MAX.into(),
                    (9, _) => (u64::MAX - 63).into(),
                    (10, _) => (1_u64 << 32).into(),
                    _ => value.as_u64().unwrap_or(5).wrapping_add(1).into(),
                };
            }
            index += 1;
        });
    }
    serde_json::from_value(document).ok()
}

/// Runs a program that was found valid, unless it is large.
fn run(program: &Program) -> Result<(), Error> {
    let values = program.entries().iter().flat_map(|entry| entry.graph.values());
    let elements: usize = values.map(|value| value.shape.numel()).fold(0, usize::saturating_add);
    if elements > 100_000 || program.arena_bytes() > 1 << 24 {
        return Ok(());
    }
    let mut engine = RefBackend::rounding().executor(program)?;
    for (n, slot) in program.slots().iter().enumerate() {
        if slot.kind != SlotKind::Output {
            engine.write(SlotId::new(n), &vec![1; slot.bytes()])?;
        }
    }
    (0..program.entries().len()).try_for_each(|entry| engine.run(EntryId::new(entry), 1))
}

#[test]
fn the_undamaged_program_runs() -> Result<(), Error> {
    run(&program()?)
}

#[test]
fn stochastic_rounding_needs_a_known_number_of_bits() -> Result<(), Error> {
    let mut graph = Graph::new();
    let x = graph.fill([4], 1.0)?;
    let how =
        Conversion { rounding: Rounding::Stochastic { bits: 0 }, overflow: Overflow::Special };
    let cast = Op::Cast { to: DType::Float(Format::E4M3) };
    let result = graph.op(cast, &[x]).stored_as(DType::Float(Format::E4M3), how).one();
    assert!(matches!(result, Err(onesigma_graph::Error::Attribute { attribute: "rounding", .. })));
    // The same in a program that was loaded.
    let text = serde_json::to_string(&program()?).unwrap_or_default();
    let found = text.matches("\"bits\":16").count();
    assert!(found > 0);
    let damaged: Program = serde_json::from_str(&text.replace("\"bits\":16", "\"bits\":0"))
        .map_err(|error| onesigma_graph::Error::InvalidProgram { reason: error.to_string() })?;
    assert!(matches!(damaged.validate(), Err(onesigma_graph::Error::InvalidProgram { .. })));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1500) })]

    #[test]
    fn a_damaged_program_never_panics(
        changes in proptest::collection::vec(any::<(usize, u8)>(), 1..4),
    ) {
        let original = program().map_err(|error| TestCaseError::fail(error.to_string()))?;
        let document = serde_json::to_value(&original)
            .map_err(|error| TestCaseError::fail(error.to_string()))?;
        if let Some(program) = damaged(&document, &changes)
            && program.validate().is_ok()
        {
            prop_assert!(!print::program_text(&program).is_empty());
            // An error of the engine is as good as a result.
            let _ = run(&program);
        }
    }
}
