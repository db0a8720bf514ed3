//! The training loop on the CPU backend, with a model small enough to reason about: each byte
//! predicts the next through one embedding and one linear layer.

use std::sync::atomic::AtomicBool;

use onesigma_backend::Backend;
use onesigma_backend_cpu::CpuBackend;
use onesigma_format::Format;
use onesigma_graph::passes::legalise::Support;
use onesigma_graph::recipe::{Recipe, Scaling};
use onesigma_graph::{Graph, Op, Role, ValueId};
use onesigma_models::{Init, ParamKind, ParamSpec};
use onesigma_train::batch::Batch;
use onesigma_train::checkpoint::{Checkpoint, Tensor};
use onesigma_train::config::{Config, ModelConfig};
use onesigma_train::corpus::{Corpus, Document};
use onesigma_train::optimizer::Optimizer;
use onesigma_train::program::{self, Inputs, Measures, Model, Parameter, Settings, Target};
use onesigma_train::run_dir::RunDir;
use onesigma_train::session::{Session, measure};
use onesigma_train::telemetry::{Event, Record};
use onesigma_train::trainer::Trainer;
use onesigma_train::{Error, Result};

const WIDTH: usize = 8;
const ADAMW: Optimizer = Optimizer::AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, decay: 0.0 };
const SGD: Optimizer = Optimizer::Sgd { momentum: 0.0, decay: 0.0 };

struct Bigram;

impl Bigram {
    fn logits(
        &self,
        graph: &mut Graph,
        parameters: &[ValueId],
        tokens: ValueId,
    ) -> Result<ValueId> {
        let rows = graph.op(Op::Gather, &[parameters[0], tokens]).role(Role::Activation).one()?;
        Ok(graph.matmul(rows, parameters[1]).role(Role::Activation).one()?) // (batch, seq, 256)
    }
}

impl Model for Bigram {
    fn parameters(&self) -> Result<Vec<Parameter>> {
        let parameter = |name: &str, shape: [usize; 2]| Parameter {
            spec: ParamSpec {
                name: name.into(),
                shape: shape.into(),
                init: Init::Normal { std: 0.3 },
                kind: ParamKind::Weight,
                fan_in: shape[1],
                layer: None,
            },
            lr_scale: 1.0,
        };
        Ok(vec![parameter("embedding", [256, WIDTH]), parameter("readout", [WIDTH, 256])])
    }

    fn loss(
        &self,
        graph: &mut Graph,
        parameters: &[ValueId],
        inputs: Inputs<'_>,
        _training: bool,
    ) -> Result<Measures> {
        let logits = self.logits(graph, parameters, inputs.tokens)?;
        let op = Op::CrossEntropy { mult: 1.0, mean: true };
        Ok(graph.op(op, &[logits, inputs.targets]).one()?.into())
    }

    fn next_logits(
        &self,
        graph: &mut Graph,
        parameters: &[ValueId],
        tokens: ValueId,
        position: ValueId,
    ) -> Result<ValueId> {
        let logits = self.logits(graph, parameters, tokens)?;
        let logits = graph.reshape(logits, [16, 256])?; // (seq, 256)
        Ok(graph.op(Op::Gather, &[logits, position]).one()?)
    }
}

/// Everything runs as it stands on the CPU backend.
const CPU: Target<'static> = Target { supports: &|_, _, _| Support::Native, strict: true };

fn settings(batch: usize, accumulate: usize, optimizer: Optimizer) -> Settings {
    Settings { batch, seq: 16, vocabulary: 256, accumulate, optimizer }
}

fn session(recipe: &Recipe, settings: Settings) -> Session {
    let program = program::build(&Bigram, recipe, settings, CPU).expect("a program");
    let engine = CpuBackend::new().compile(&program.program).expect("the CPU runs it");
    let mut session = Session::new(program, engine);
    session.init(3).expect("initial state");
    session
}

fn f32_recipe() -> Recipe {
    Recipe::uniform("f32", Format::F32)
}

fn batch(rows: usize, first: u32) -> Batch {
    let tokens: Vec<u32> = (0..rows as u32 * 17).map(|i| (first + i * 7 + i * i) % 256).collect();
    let pick = |at: usize| tokens.chunks(17).flat_map(|row| row[at..at + 16].to_vec()).collect();
    Batch { inputs: pick(0), targets: pick(1), ..Batch::default() }
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    let four = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    tensor.bytes.chunks_exact(4).map(four).collect()
}

fn tensor(session: &mut Session, name: &str) -> Vec<f32> {
    let state = session.state().expect("its state");
    floats(state.iter().find(|tensor| tensor.name == name).expect("a tensor of that name"))
}

fn corpus() -> Corpus {
    let text: String = (0..800).map(|n| format!("{n} and {}; ", n + 1)).collect();
    let document = Document { name: "numbers".into(), text: text.into_bytes() };
    Corpus::from_documents("numbers", vec![document], Vec::new())
}

fn config() -> Config {
    Config {
        steps: 60,
        batch: 8,
        eval_every: 20,
        save_every: 25,
        steps_per_call: 8,
        eval_batches: 2,
        lr: Some(0.05),
        model: ModelConfig {
            layers: 1,
            heads: 1,
            hidden: WIDTH,
            seq: 16,
            ..ModelConfig::default()
        },
        ..Config::default()
    }
}

fn trainer(config: &Config) -> Trainer {
    let optimizer = config.optimizer().expect("a known one");
    let settings = settings(config.batch, config.accumulate, optimizer);
    Trainer::new(session(&f32_recipe(), settings), config, 0.1, &corpus()).expect("a trainer")
}

#[test]
fn a_fresh_model_knows_nothing_and_learns() {
    for optimizer in [ADAMW, Optimizer::Sgd { momentum: 0.9, decay: 0.0 }] {
        let mut session = session(&f32_recipe(), settings(4, 1, optimizer));
        let data = batch(4, 1);
        let losses: Vec<f32> = (0..150)
            .flat_map(|step| {
                let passes = std::slice::from_ref(&data);
                session.train(step, &[0.1], passes).expect("a step")
            })
            .collect();
        assert!((losses[0] - 256f32.ln()).abs() < 0.3, "starts at {}", losses[0]);
        assert!(losses[149] < losses[0] - 0.5, "{optimizer:?} ends at {}", losses[149]);
    }
}

#[test]
fn descent_moves_by_the_rate_times_the_gradient() {
    let step_by = |rate: f32| {
        let mut session = session(&f32_recipe(), settings(2, 1, SGD));
        let before = tensor(&mut session, "readout");
        session.train(0, &[rate], &[batch(2, 5)]).expect("a step");
        let after = tensor(&mut session, "readout");
        before.iter().zip(after).map(|(b, a)| (b - a) / rate).collect::<Vec<f32>>()
    };
    let (once, thrice) = (step_by(1.0), step_by(3.0));
    assert!(once.iter().any(|g| g.abs() > 1e-3));
    assert!(once.iter().zip(&thrice).all(|(a, b)| (a - b).abs() < 1e-6));
}

#[test]
fn two_small_passes_equal_one_large_pass() {
    let (first, second) = (batch(2, 1), batch(2, 90));
    let mut split = session(&f32_recipe(), settings(2, 2, SGD));
    let split_loss = split.train(0, &[0.5], &[first.clone(), second.clone()]).expect("a step");
    let mut whole = session(&f32_recipe(), settings(4, 1, SGD));
    let both = Batch {
        inputs: [first.inputs, second.inputs].concat(),
        targets: [first.targets, second.targets].concat(),
        ..Batch::default()
    };
    let whole_loss = whole.train(0, &[0.5], &[both]).expect("a step");
    assert!((split_loss[0] - whole_loss[0]).abs() < 1e-5);
    for name in ["embedding", "readout"] {
        let (a, b) = (tensor(&mut split, name), tensor(&mut whole, name));
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-6), "{name} differs");
    }
    assert!(tensor(&mut split, "readout.gradient").iter().all(|&sum| sum == 0.0));
}

/// F16 gradients overflow under a large enough scale.
fn scaled(init: f64) -> Recipe {
    Recipe {
        scaling: Scaling::Loss { init, growth: 2.0, backoff: 0.25, interval: 3 },
        ..overflowing(Recipe::uniform("f16", Format::F16))
    }
}

/// The recipe with infinities where a value leaves the range of its format.
fn overflowing(mut recipe: Recipe) -> Recipe {
    for rule in &mut recipe.rules {
        rule.overflow = onesigma_format::Overflow::Special;
    }
    recipe
}

#[test]
fn a_step_that_overflows_is_skipped_and_lowers_the_loss_scale() {
    let mut session = session(&scaled(2f64.powi(30)), settings(2, 1, ADAMW));
    let before = session.state().expect("its state");
    session.train(0, &[0.1], &[batch(2, 3)]).expect("a step");
    assert_eq!(tensor(&mut session, "loss_scale"), [2f32.powi(28)]);
    assert_eq!(tensor(&mut session, "good_steps"), [0.0]);
    for (old, new) in before.iter().zip(session.state().expect("its state")) {
        assert!(old.name == "loss_scale" || *old == new, "{} changed", old.name);
    }
    for step in 1..30 {
        session.train(step, &[0.1], &[batch(2, 3)]).expect("a step");
    }
    assert!(tensor(&mut session, "readout").iter().all(|weight| weight.is_finite()));
    assert_ne!(tensor(&mut session, "readout"), floats(&before[before.len() - 3]));
    assert!(tensor(&mut session, "loss_scale")[0] < 2f32.powi(24));
}

#[test]
fn good_steps_raise_the_loss_scale() {
    let mut session = session(&scaled(1024.0), settings(2, 1, ADAMW));
    let scales: Vec<f32> = (0..6)
        .map(|step| {
            session.train(step, &[0.1], &[batch(2, 3)]).expect("a step");
            tensor(&mut session, "loss_scale")[0]
        })
        .collect();
    assert_eq!(scales, [1024.0, 1024.0, 2048.0, 2048.0, 2048.0, 4096.0]);
}

#[test]
fn a_loss_scale_changes_no_f32_gradient() {
    let after = |recipe: &Recipe| {
        let mut session = session(recipe, settings(2, 1, SGD));
        session.train(0, &[0.5], &[batch(2, 3)]).expect("a step");
        tensor(&mut session, "readout")
    };
    let scaled = Recipe { scaling: scaled(4096.0).scaling, ..f32_recipe() };
    assert_eq!(after(&scaled), after(&f32_recipe()));
}

#[test]
fn flushed_gradients_are_counted_in_narrow_formats_alone() {
    let settings = settings(4, 1, ADAMW);
    let state = session(&f32_recipe(), settings).state().expect("its state");
    let share = |recipe: &Recipe| {
        let program = program::build_measuring(&Bigram, recipe, settings, CPU).expect("a program");
        let mut engine = CpuBackend::new().compile(&program.program).expect("the CPU runs it");
        let tensors = measure(&program, engine.as_mut(), &state, &batch(4, 9), 3).expect("counts");
        assert!(tensors.iter().any(|tensor| tensor.name.contains("grad")), "{tensors:?}");
        let sum = |pick: fn(&onesigma_train::session::Flushed) -> f64| -> f64 {
            tensors.iter().map(pick).sum()
        };
        assert!(sum(|tensor| tensor.nonzero) > 1000.0);
        sum(|tensor| tensor.flushed) / sum(|tensor| tensor.nonzero)
    };
    assert_eq!(share(&f32_recipe()), 0.0);
    assert_eq!(share(&Recipe::uniform("bf16", Format::BF16)), 0.0);
    // Gradients of the logits are near 1/64/256: E4M3 stops at 2^-10.
    assert!(share(&Recipe::uniform("e4m3", Format::E4M3)) > 0.5);
}

#[test]
fn a_run_resumed_from_any_checkpoint_ends_in_the_same_bits() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let config = config();
    let mut run = RunDir::create(&dir.path().join("whole"), &config).expect("a run folder");
    let mut whole = trainer(&config);
    let summary = whole.run(&mut run, &mut (), &AtomicBool::new(false)).expect("a run");
    assert_eq!(summary.steps, 60);
    assert!(summary.validation_loss < 4.5, "{}", summary.validation_loss);
    let metrics = |root: &std::path::Path| -> Vec<Record> {
        let records = RunDir::metrics(root).expect("metrics");
        records.into_iter().filter(|r| !matches!(r, Record::Speed { .. })).collect()
    };
    let expected = metrics(run.root());
    assert_eq!(expected.len(), 60 + 3);
    let last = whole.checkpoint().expect("its state");

    for step in [25, 50] {
        let mut resumed = trainer(&config);
        let path = run.checkpoints().join(Checkpoint::file_name(step));
        resumed.restore(&Checkpoint::load(&path).expect("a checkpoint")).expect("it fits");
        let mut again = RunDir::resume(run.root(), step).expect("a run folder");
        let mut events = Vec::new();
        resumed.run(&mut again, &mut events, &AtomicBool::new(false)).expect("a run");
        assert!(matches!(events[0], Event::Started { first_step, .. } if first_step == step));
        assert_eq!(metrics(run.root()), expected);
        assert_eq!(resumed.checkpoint().expect("its state"), last);
    }
}

#[test]
fn stopping_early_saves_and_says_so() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let config = config();
    let mut run = RunDir::create(dir.path(), &config).expect("a run folder");
    let mut events = Vec::new();
    let summary =
        trainer(&config).run(&mut run, &mut events, &AtomicBool::new(true)).expect("a run");
    assert_eq!(summary.steps, 0);
    assert_eq!(events.last(), Some(&Event::Finished { steps: 0, stopped: true }));
    let (_, checkpoint, _) = Checkpoint::latest(&run.checkpoints()).expect("one");
    assert_eq!(checkpoint.state.step, 0);
}

#[test]
fn a_checkpoint_of_another_run_is_refused() {
    let config = config();
    let checkpoint = trainer(&config).checkpoint().expect("its state");
    let mut wider = trainer(&Config { lr: Some(0.01), ..config.clone() });
    let error = wider.restore(&checkpoint).expect_err("another learning rate");
    assert!(matches!(error, Error::CheckpointMismatch { .. }), "{error}");

    let mut other = checkpoint.clone();
    other.state.corpus_sha256 = "0".repeat(64);
    let error = trainer(&config).restore(&other).expect_err("another text");
    assert!(error.to_string().contains("text"), "{error}");

    let mut torn = checkpoint;
    torn.tensors.retain(|tensor| tensor.name != "readout");
    let error = trainer(&config).restore(&torn).expect_err("a tensor is missing");
    assert!(error.to_string().contains("readout"), "{error}");
}

#[test]
fn a_corpus_without_a_validation_sequence_is_refused() {
    let document = Document { name: "short".into(), text: vec![b'x'; 100] };
    let corpus = Corpus::from_documents("short", vec![document], Vec::new());
    let session = session(&f32_recipe(), settings(8, 1, ADAMW));
    let error = Trainer::new(session, &config(), 0.1, &corpus).expect_err("10 bytes");
    assert!(matches!(error, Error::DataTooShort { split: "validation", .. }), "{error}");
}
