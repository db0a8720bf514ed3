//! The training loop on the CPU backend.

use std::sync::atomic::AtomicBool;

use onesigma_backend::Backend;
use onesigma_backend_cpu::CpuBackend;
use onesigma_format::Format;
use onesigma_graph::recipe::{Recipe, Scaling};
use onesigma_train::Error;
use onesigma_train::batch::Batch;
use onesigma_train::checkpoint::Checkpoint;
use onesigma_train::config::Config;
use onesigma_train::corpus::{Corpus, Document};
use onesigma_train::optimizer::Optimizer;
use onesigma_train::program;
use onesigma_train::run_dir::RunDir;
use onesigma_train::session::measure;
use onesigma_train::telemetry::{End, Event, Record};
use onesigma_train::trainer::{BEST, Trainer};

mod common;

use common::{
    ADAMW, Bigram, CPU, SGD, batch, config, f32_recipe, floats, session, settings, tensor, trainer,
};

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
    assert_eq!(events.last(), Some(&Event::Finished { steps: 0, end: End::Interrupted }));
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

/// Losses of a run's evaluations.
fn evaluations(run: &RunDir) -> Vec<(u64, f32)> {
    let pick = |record| match record {
        Record::Evaluation { step, loss, .. } => Some((step, loss)),
        _ => None,
    };
    RunDir::metrics(run.root()).expect("metrics").into_iter().filter_map(pick).collect()
}

#[test]
fn a_run_that_gets_no_better_ends_and_its_best_state_is_kept() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    // So fast that it soon leaves what it has found.
    let config =
        Config { steps: 400, eval_every: 5, save_every: 0, patience: 3, lr: Some(0.6), ..config() };
    let mut run = RunDir::create(dir.path(), &config).expect("a run folder");
    let mut events = Vec::new();
    let mut trained = trainer(&config);
    let summary = trained.run(&mut run, &mut events, &AtomicBool::new(false)).expect("a run");
    assert!(summary.steps < 400, "it went on to the end");
    assert_eq!(summary.end, End::EarlyStop);
    assert_eq!(events.last(), Some(&Event::Finished { steps: summary.steps, end: summary.end }));

    let found = evaluations(&run);
    let lowest = found.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)).expect("some");
    assert_eq!(summary.best, Some(lowest));
    assert_eq!(summary.steps, lowest.0 + 3 * 5);
    let best = Checkpoint::load(&run.checkpoints().join(BEST)).expect("the best state");
    assert_eq!(best.state.step, lowest.0);
    let mut again = trainer(&config);
    again.restore(&best).expect("its own state");
    assert_eq!(again.evaluate().expect("a loss").loss, lowest.1);

    // Continued as it is, it ends at once; with more patience it goes on.
    let (_, last, _) = Checkpoint::latest(&run.checkpoints()).expect("the last state");
    let take = |config: &Config| {
        let mut resumed = trainer(config);
        resumed.restore(&last).expect("it fits");
        let mut run = RunDir::resume(dir.path(), resumed.steps_done()).expect("a run folder");
        resumed.run(&mut run, &mut (), &AtomicBool::new(false)).expect("a run")
    };
    assert_eq!(take(&config).steps, summary.steps);
    assert!(take(&Config { patience: 5, ..config }).steps > summary.steps);
}

#[test]
fn a_run_whose_rate_does_not_depend_on_its_length_can_be_lengthened_bit_for_bit() {
    use onesigma_train::schedule::Decay;
    let dir = tempfile::tempdir().expect("a temporary folder");
    let long = Config { schedule: Decay::Constant, warmup: Some(4), ..config() };
    let mut whole = RunDir::create(&dir.path().join("whole"), &long).expect("a run folder");
    let mut trained = trainer(&long);
    trained.run(&mut whole, &mut (), &AtomicBool::new(false)).expect("a run");
    let last = trained.checkpoint().expect("its state");

    let short = Config { steps: 20, ..long.clone() };
    let root = dir.path().join("short");
    let mut run = RunDir::create(&root, &short).expect("a run folder");
    trainer(&short).run(&mut run, &mut (), &AtomicBool::new(false)).expect("a run");
    let (_, end, _) = Checkpoint::latest(&run.checkpoints()).expect("its end");
    let mut longer = short.clone();
    longer.continue_as(&long);
    let mut resumed = trainer(&longer);
    resumed.restore(&end).expect("a longer run of the same kind");
    let mut run = RunDir::resume(&root, 20).expect("a run folder");
    resumed.run(&mut run, &mut (), &AtomicBool::new(false)).expect("a run");
    assert_eq!(resumed.checkpoint().expect("its state").tensors, last.tensors);
    assert_eq!(evaluations(&run), evaluations(&whole));

    let error = trainer(&short).restore(&last).expect_err("it has taken more steps");
    assert!(error.is_usage() && error.to_string().contains("--steps is 20"), "{error}");
}

#[test]
fn samples_are_drawn_when_they_are_due_and_change_nothing() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let run = |name: &str, config: &Config| {
        let mut run = RunDir::create(&dir.path().join(name), config).expect("a run folder");
        let mut trained = trainer(config);
        trained.run(&mut run, &mut (), &AtomicBool::new(false)).expect("a run");
        let records = RunDir::metrics(run.root()).expect("metrics");
        (records, trained.checkpoint().expect("its state").tensors)
    };
    let (_, silent) = run("silent", &config());
    let talking =
        Config { sample_every: 20, sample_tokens: 12, sample_prompt: "1 and ".into(), ..config() };
    let (records, state) = run("talking", &talking);
    assert_eq!(silent, state);
    let texts: Vec<(u64, String)> = records
        .into_iter()
        .filter_map(|record| match record {
            Record::Sample { step, text } => Some((step, text)),
            _ => None,
        })
        .collect();
    assert_eq!(texts.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [20, 40, 60]);
    for (_, text) in &texts {
        assert!(text.starts_with("1 and ") && text.chars().count() > 10, "{text:?}");
    }
}
