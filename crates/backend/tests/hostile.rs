//! Programs from outside: damaged ones get an error, never a panic.

mod programs;

use onesigma_backend::{Engine, Error, RefBackend};
use onesigma_format::{Conversion, Format, Overflow, Rounding};
use onesigma_graph::{DType, EntryId, Graph, Op, Program, SlotId, SlotKind, print};
use programs::program;
use proptest::prelude::*;
use serde_json::Value;

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

/// What `cargo fuzz run program` in `crates/graph` does with inputs that it grows, with inputs from
/// a seed: changes of valid files behind a right checksum, bytes without meaning, and both mixed.
#[test]
fn seeded_bytes_never_panic() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let mut valid = 0;
    for _ in 0..10_000 {
        let length = usize::from(random() % 24);
        // Seven of eight inputs are changes of a valid file.
        let mode = if random() % 8 == 0 { random() % 2 } else { 2 + random() % 2 };
        let data: Vec<u8> = std::iter::once(mode).chain((0..length).map(|_| random())).collect();
        if let Some(program) = programs::read(&data) {
            valid += 1;
            programs::look(&program);
            programs::run(&program, &RefBackend::rounding());
        }
    }
    assert!(valid > 1000, "only {valid} changed programs are valid: the changes miss");
}
