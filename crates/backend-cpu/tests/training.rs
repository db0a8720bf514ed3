//! A whole training step of a small transformer: threads change nothing, and it learns.

use onesigma_backend::{Backend, Engine};
use onesigma_backend_cpu::CpuBackend;
use onesigma_format::{Format, Rounding};
use onesigma_graph::recipe::{Rule, Use};
use onesigma_graph::{
    AdamWConfig, DType, EntryId, Graph, Module, Op, Program, Recipe, Role, SlotId, SlotKind,
    ValueId, autodiff, passes,
};

const BATCH: usize = 3;
const SEQ: usize = 37;
const WIDTH: usize = 24;
const VOCAB: usize = 29;

/// Slots that the tests use, and the program.
struct Training {
    program: Program,
    loss: SlotId,
    weights: Vec<SlotId>,
}

fn parameter(
    module: &mut Module,
    graph: &mut Graph,
    shape: &[usize],
    slots: &mut Vec<[SlotId; 3]>,
) -> ValueId {
    let roles = [Role::MasterWeight, Role::FirstMoment, Role::SecondMoment];
    let made = roles.map(|role| {
        let name = format!("{role}{}", slots.len());
        module.slot(&name, SlotKind::State, shape, DType::F32, role).unwrap()
    });
    slots.push(made);
    module.read(graph, made[0])
}

fn training(recipe: &Recipe) -> Training {
    let (mut module, mut graph, mut slots) = (Module::new(), Graph::new(), Vec::new());
    let mut input = |module: &mut Module, name: &str, shape: &[usize], dtype| {
        let slot = module.slot(name, SlotKind::Input, shape, dtype, Role::Data).unwrap();
        module.read(&mut graph, slot)
    };
    let ids = input(&mut module, "ids", &[BATCH, SEQ], DType::U32);
    let targets = input(&mut module, "targets", &[BATCH, SEQ], DType::U32);
    let lr = input(&mut module, "lr", &[], DType::F32);
    module.seed_slot().unwrap();
    let step = module.step_slot().unwrap();
    let step = module.read(&mut graph, step);
    let loss_slot = module.slot("loss", SlotKind::Output, [], DType::F32, Role::Statistic).unwrap();

    let table = parameter(&mut module, &mut graph, &[VOCAB, WIDTH], &mut slots);
    let mut x = graph.op(Op::Gather, &[table, ids]).one().unwrap();
    let [qkv, up, head] = [3 * WIDTH, WIDTH, VOCAB]
        .map(|out| parameter(&mut module, &mut graph, &[out, WIDTH], &mut slots));
    let linear = |graph: &mut Graph, x: ValueId, weight: ValueId| {
        let op = Op::MatMul { transpose_left: false, transpose_right: true };
        graph.op(op, &[x, weight]).alpha(0.2).beta(&[0.2, 0.1]).one().unwrap()
    };
    let h = graph.op(Op::LayerNorm { eps: 1e-5 }, &[x]).one().unwrap();
    let h = linear(&mut graph, h, qkv);
    let parts: Vec<ValueId> = (0..3)
        .map(|part| {
            let slice = Op::Slice { axis: 2, start: part * WIDTH, len: WIDTH };
            let part = graph.op(slice, &[h]).one().unwrap();
            graph.reshape(part, [BATCH, SEQ, 2, WIDTH / 2]).unwrap()
        })
        .collect();
    let attention = Op::Attention { causal: true, logit_scale: 0.3 };
    let mixed = graph.op(attention, &parts).all().unwrap()[0];
    let mixed = graph.reshape(mixed, [BATCH, SEQ, WIDTH]).unwrap();
    x = graph.map(&[x, mixed], |x| x[0].clone() + x[1].clone()).unwrap().one().unwrap();
    let h = graph.op(Op::RmsNorm { eps: 1e-5 }, &[x]).one().unwrap();
    let h = linear(&mut graph, h, up);
    let h = graph.map(&[h], |x| x[0].clone() * x[0].sigmoid()).unwrap().one().unwrap();
    x = graph.map(&[x, h], |x| x[0].clone() + x[1].clone()).unwrap().one().unwrap();
    let logits = linear(&mut graph, x, head);
    let entropy = Op::CrossEntropy { mult: 1.0, mean: true };
    let loss = graph.op(entropy, &[logits, targets]).beta(&[50.0, 1.0]).one().unwrap();

    let weights: Vec<ValueId> =
        slots.iter().map(|slots| module.read(&mut graph, slots[0])).collect();
    let gradients = autodiff::gradients(&mut graph, loss, &weights, None).unwrap();
    let one = graph.fill([], 1.0).unwrap();
    let adam = AdamWConfig { beta1: 0.9, beta2: 0.95, eps: 1e-8, decay: 0.01, lr_scale: 1.0 };
    for ((slots, weight), gradient) in slots.iter().zip(&weights).zip(gradients) {
        let [m, v] = [slots[1], slots[2]].map(|slot| module.read(&mut graph, slot));
        let inputs = [*weight, gradient, m, v, lr, step, one];
        let results = graph.op(Op::AdamW(adam), &inputs).all().unwrap();
        for (slot, result) in slots.iter().zip(results) {
            graph.write(*slot, result);
        }
    }
    graph.write(loss_slot, loss);
    let graph = passes::apply_recipe::apply_recipe(&passes::clean::clean(&graph), recipe).unwrap();
    module.entry("train_step", graph).unwrap();
    let program = Program::new(module).unwrap();
    Training { program, loss: loss_slot, weights: slots.iter().map(|slots| slots[0]).collect() }
}

fn fp8() -> Recipe {
    let mut recipe = Recipe::uniform("fp8", Format::BF16);
    for (role, format) in [
        (Role::Weight, Format::E4M3),
        (Role::Activation, Format::E4M3),
        (Role::ActivationGrad, Format::E5M2),
    ] {
        let rounding = Rounding::Stochastic { bits: 16 };
        recipe.rules.insert(0, Rule { rounding, ..Rule::new(role, Use::Matmul, format) });
    }
    recipe
}

/// Losses of `steps` steps on one batch and the bits of all weights afterwards.
fn run(training: &Training, backend: &CpuBackend, steps: usize) -> (Vec<f32>, Vec<u8>) {
    let mut engine = backend.compile(&training.program).unwrap();
    run_on(training, &mut *engine, steps)
}

fn run_on(training: &Training, engine: &mut dyn Engine, steps: usize) -> (Vec<f32>, Vec<u8>) {
    let program = &training.program;
    let mut seed = 1_u32;
    for &slot in &training.weights {
        let count = program.slots()[slot.index()].shape.numel();
        let values: Vec<u8> = (0..count)
            .flat_map(|_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                ((seed >> 8) as f32 / (1 << 23) as f32 - 1.0).to_le_bytes()
            })
            .collect();
        engine.write(slot, &values).unwrap();
    }
    let words = |values: Vec<u32>| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let mut write = |name: &str, bytes: &[u8]| {
        engine.write(program.find_slot(name).unwrap(), bytes).unwrap();
    };
    let tokens = |shift: usize| (0..BATCH * SEQ).map(move |i| ((i + shift) * 7 % VOCAB) as u32);
    write("ids", &words(tokens(0).collect()));
    write("targets", &words(tokens(1).collect()));
    write("lr", &0.02_f32.to_le_bytes());
    write("seed", &words(vec![7, 0]));
    write("step", &words((0..steps as u32).collect()));
    engine.run(EntryId::new(0), steps).unwrap();
    let mut losses = vec![0; steps * 4];
    engine.read(training.loss, &mut losses).unwrap();
    let mut bits = Vec::new();
    for &slot in &training.weights {
        let mut bytes = vec![0; program.slots()[slot.index()].bytes()];
        engine.read(slot, &mut bytes).unwrap();
        bits.extend(bytes);
    }
    (losses.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect(), bits)
}

#[test]
fn a_step_is_the_same_for_any_number_of_threads() {
    for recipe in [Recipe::uniform("f32", Format::F32), fp8()] {
        let training = training(&recipe);
        let (losses, bits) = run(&training, &CpuBackend::with_threads(1).unwrap(), 3);
        for threads in [2, 5] {
            let backend = CpuBackend::with_threads(threads).unwrap();
            assert_eq!(run(&training, &backend, 3), (losses.clone(), bits.clone()));
        }
    }
}

/// A recorded run does one instruction after the other, others go through rows together.
#[test]
fn passes_over_rows_change_no_bit() {
    for recipe in [Recipe::uniform("f32", Format::F32), fp8()] {
        let training = training(&recipe);
        let mut engine = CpuBackend::new().compile(&training.program).unwrap();
        let notes = engine.report().notes;
        assert!(notes.iter().any(|note| note.contains("passes over rows")), "{notes:?}");
        let together = run_on(&training, &mut *engine, 3);
        let mut engine = CpuBackend::new().compile(&training.program).unwrap();
        assert!(engine.record());
        assert!(run_on(&training, &mut *engine, 3) == together, "{}", recipe.name);
    }
}

#[test]
fn it_learns_in_f32_and_in_fp8() {
    for recipe in [Recipe::uniform("f32", Format::F32), fp8()] {
        let (losses, _) = run(&training(&recipe), &CpuBackend::new(), 120);
        let (first, last) = (losses[0], losses[losses.len() - 1]);
        assert!(first > 2.0 && last < 0.25 * first, "{}: {first} to {last}", recipe.name);
    }
}

#[test]
fn state_and_arena_are_what_the_plan_says() {
    let training = training(&fp8());
    let engine: Box<dyn Engine> = CpuBackend::new().compile(&training.program).unwrap();
    let report = engine.report();
    assert_eq!(report.planned_bytes, training.program.arena_bytes());
    assert!(report.allocated_bytes >= report.planned_bytes);
}
