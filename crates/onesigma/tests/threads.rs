//! Neither the number of threads nor instructions that run together change a bit of a training run.

use onesigma::backend::{Backend, Engine};
use onesigma::graph::{Program, SlotId, SlotKind};
use onesigma::setup;
use onesigma::train::config::{Config, ModelConfig};
use onesigma_backend_cpu::CpuBackend;

/// Every state after `init` and three steps on the same tokens, and the losses.
fn run(program: &Program, threads: usize, one_by_one: bool) -> Vec<(String, Vec<u8>)> {
    let mut engine = CpuBackend::with_threads(threads).unwrap().compile(program).unwrap();
    if one_by_one {
        assert!(engine.record());
    }
    let write = |engine: &mut dyn Engine, name: &str, words: Vec<u32>| {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        engine.write(program.find_slot(name).unwrap(), &bytes).unwrap();
    };
    let tokens = program.slots()[program.find_slot("tokens").unwrap().index()].shape.numel();
    let token = |i: usize| (i * i % 251) as u32;
    write(&mut *engine, "seed", vec![7, 0]);
    write(&mut *engine, "step", vec![0]);
    write(&mut *engine, "tokens", (0..tokens).map(token).collect());
    write(&mut *engine, "targets", (1..=tokens).map(token).collect());
    write(&mut *engine, "lr", vec![0.05_f32.to_bits()]);
    for entry in ["init", "train_step", "train_step", "train_step"] {
        engine.run(program.find_entry(entry).unwrap(), 1).unwrap();
    }
    let kept = |kind: SlotKind, name: &str| kind == SlotKind::State || name == "loss";
    let slots = program.slots().iter().enumerate();
    slots
        .filter(|(_, slot)| kept(slot.kind, &slot.name))
        .map(|(at, slot)| {
            let mut bytes = vec![0; slot.bytes()];
            engine.read(SlotId::new(at), &mut bytes).unwrap();
            (slot.name.clone(), bytes)
        })
        .collect()
}

/// Rows, columns and sequences that are no multiples of any tile or block.
#[test]
fn one_two_three_and_seven_threads_give_the_same_bits() {
    for recipe in ["unit-fp8", "u-mup-fp8", "f32", "fp16-loss-scale"] {
        let model = ModelConfig { layers: 2, heads: 3, hidden: 78, seq: 67, ..Default::default() };
        let config = Config { recipe: recipe.to_owned(), batch: 3, model, ..Config::default() };
        let program = setup::program(&config).unwrap().program;
        let expected = run(&program, 1, false);
        assert!(expected.iter().any(|(name, bytes)| name == "loss" && *bytes != [0; 4]));
        for (threads, one_by_one) in [(2, false), (3, false), (7, false), (2, true)] {
            for (expected, found) in expected.iter().zip(run(&program, threads, one_by_one)) {
                assert!(
                    *expected == found,
                    "{recipe}, {threads} threads, one by one {one_by_one}: {} differs",
                    found.0
                );
            }
        }
    }
}
