//! Measuring the tensors of real steps on the CPU backend.

use onesigma_backend::Backend;
use onesigma_backend_cpu::CpuBackend;
use onesigma_format::Format;
use onesigma_graph::{Role, SlotId};
use onesigma_ops::recipes;
use onesigma_train::batch::Batch;
use onesigma_train::config::{Config, ModelConfig};
use onesigma_train::model::Gpt;
use onesigma_train::numerics::{Measured, Moment, Options, Pass, Probe, measure};
use onesigma_train::program::{self, HostSlots, Settings, Target, build_step};
use onesigma_train::session::{self, Session};

const SIZE: ModelConfig = ModelConfig {
    layers: 2,
    heads: 2,
    hidden: 32,
    seq: 16,
    norm_position: None,
    residual_tau: None,
    residual_mult: None,
    attention_keys: None,
};

struct Case {
    model: Gpt,
    recipe: onesigma_graph::Recipe,
    settings: Settings,
}

fn case(recipe: &str) -> Case {
    let recipe = recipes::by_name(recipe).expect("a built-in");
    let model = Gpt::new(&SIZE, recipes::parametrisation(&recipe)).expect("a size");
    let optimizer = Config::default().optimizer().expect("adamw");
    let settings =
        Settings { batch: 4, seq: SIZE.seq, vocabulary: 256, accumulate: 1, optimizer, clip: None };
    Case { model, recipe, settings }
}

/// Tokens that differ from step to step.
fn batch(step: u64) -> Batch {
    let token = |n: u64| (n.wrapping_mul(2_654_435_761).wrapping_add(step * 97) >> 7) as u32 % 256;
    let inputs: Vec<u32> = (0..64).map(token).collect();
    let targets = (1..65).map(token).collect();
    Batch { step, inputs, targets, more: Vec::new() }
}

fn inputs(slots: HostSlots, batch: &Batch) -> Vec<(SlotId, Vec<u8>)> {
    let words = |values: &[u32]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
    vec![
        (slots.seed, 7u64.to_le_bytes().to_vec()),
        (slots.step, (batch.step as u32).to_le_bytes().to_vec()),
        (slots.lr, 0.01f32.to_le_bytes().to_vec()),
        (slots.tokens, words(&batch.inputs)),
        (slots.targets, words(&batch.targets)),
    ]
}

fn session_of(case: &Case) -> Session {
    let backend = CpuBackend::new();
    let supports = |op: &_, inputs: &[_], output| backend.supports(op, inputs, output);
    let target = Target { supports: &supports, strict: false };
    let program =
        program::build(&case.model, &case.recipe, case.settings, target).expect("a program");
    let engine = backend.compile(&program.program).expect("an engine");
    let mut session = Session::new(program, engine);
    session.init(7).expect("a start");
    session
}

fn measured(case: &Case, steps: u64, budget_bytes: usize) -> Vec<Measured> {
    let step = build_step(&case.model, &case.recipe, case.settings).expect("a step");
    let probe = Probe::new(&step).expect("a probe");
    let mut session = session_of(case);
    for step in 0..steps {
        session.train(step, &[0.01], &[batch(step)]).expect("a step");
    }
    let state = session.state().expect("a state");
    let inputs = inputs(step.slots, &batch(steps));
    let options = Options { budget_bytes, ..Options::default() };
    let moment = Moment { state: &state, inputs: &inputs };
    measure(&probe, &CpuBackend::new(), moment, &options).expect("a measurement")
}

#[test]
fn a_measurement_is_the_same_however_it_is_cut() {
    let case = case("unit-fp8");
    let whole = measured(&case, 2, 1 << 30);
    let parts = measured(&case, 2, 1 << 16);
    assert_eq!(whole, parts);
    for pass in [Pass::Weights, Pass::Forward, Pass::Backward, Pass::Update] {
        assert!(whole.iter().any(|tensor| tensor.pass == pass), "{pass:?}");
    }
    // Every parameter of the two layers has a gradient.
    let gradients = whole.iter().filter(|tensor| tensor.role == Role::WeightGrad).count();
    assert!(gradients >= case_parameters(&case), "{gradients}");
}

fn case_parameters(case: &Case) -> usize {
    use onesigma_train::program::Model;
    case.model.parameters().expect("a model").len()
}

/// The step that is measured is the one that the run takes: after it, the new weights that the
/// probe saw have the statistics of the weights that the session has.
#[test]
fn the_measured_step_is_the_one_that_training_takes() {
    for recipe in ["fp16", "unit-fp8"] {
        let case = case(recipe);
        let step = build_step(&case.model, &case.recipe, case.settings).expect("a step");
        let probe = Probe::new(&step).expect("a probe");
        let mut session = session_of(&case);
        session.train(0, &[0.01], &[batch(0)]).expect("a step");
        let state = session.state().expect("a state");
        let inputs = inputs(step.slots, &batch(1));
        let moment = Moment { state: &state, inputs: &inputs };
        let backend = CpuBackend::new();
        let seen = measure(&probe, &backend, moment, &Options::default()).expect("tensors");

        session.train(1, &[0.01], &[batch(1)]).expect("a step");
        let state = session.state().expect("a state");
        let after = measure(
            &probe,
            &backend,
            Moment { state: &state, inputs: &inputs },
            &Options::default(),
        )
        .expect("tensors");
        // Updates stand in the order of the parameters, and so do the slots.
        let updated: Vec<_> =
            seen.iter().filter(|t| t.pass == Pass::Update && t.op == "AdamW").collect();
        assert!(!updated.is_empty());
        for tensor in updated {
            let slot = slot_name(&tensor.name);
            let kept = after
                .iter()
                .find(|t| t.op == "Slot" && t.name == slot)
                .unwrap_or_else(|| panic!("{recipe}: no slot {slot}"));
            assert_eq!(tensor.statistics.rms, kept.statistics.rms, "{recipe} {slot}");
            assert_eq!(tensor.statistics.histogram, kept.statistics.histogram, "{recipe} {slot}");
        }
    }
}

/// `w.adamw.1` is the first moment of `w`.
fn slot_name(update: &str) -> String {
    let (name, output) = update.rsplit_once(".adamw.").expect("an update");
    let suffix = ["", ".first_moment", ".second_moment"][output.parse::<usize>().expect("0..3")];
    format!("{name}{suffix}")
}

/// Gradients that F16 flushes are seen although the run stores them in F16: the count agrees with
/// that of the measuring program, which runs everything in F32.
#[test]
fn flushed_gradients_agree_with_the_count_in_f32() {
    let case = case("fp16");
    let backend = CpuBackend::new();
    let supports = |op: &_, inputs: &[_], output| backend.supports(op, inputs, output);
    let target = Target { supports: &supports, strict: false };
    let program = program::build_measuring(&case.model, &case.recipe, case.settings, target)
        .expect("a program");
    let mut engine = backend.compile(&program.program).expect("an engine");
    let state = session_of(&case).state().expect("a state");
    let counted =
        session::measure(&program, engine.as_mut(), &state, &batch(0), 7).expect("counts");
    let share = |flushed: f64, of: f64| flushed / of;
    let in_f32 = share(
        counted.iter().map(|tensor| tensor.flushed).sum(),
        counted.iter().map(|tensor| tensor.nonzero).sum(),
    );
    let seen = measured(&case, 0, 1 << 30);
    let (mut flushed, mut of) = (0.0, 0.0);
    for tensor in seen.iter().filter(|tensor| tensor.pass == Pass::Backward && tensor.op != "Cast")
    {
        assert_eq!(tensor.statistics.own.format, Format::F16, "{}", tensor.name);
        flushed += tensor.statistics.own.underflow as f64;
        of += (tensor.statistics.count - tensor.statistics.zeros) as f64;
    }
    let in_f16 = share(flushed, of);
    assert!(in_f32 > 0.001, "{in_f32}");
    // What is flushed upstream is an exact zero downstream and does not count again; nothing else
    // moves more than single elements across the threshold.
    assert!((0.75..1.05).contains(&(in_f16 / in_f32)), "{in_f16} against {in_f32}");
}
