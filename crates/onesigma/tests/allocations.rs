//! Nothing allocates while a program runs: counted over all threads.
#![allow(unsafe_code)] // a counting allocator

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use onesigma::backend::{Backend, Engine};
use onesigma::graph::{EntryId, Program, SlotId, SlotKind};
use onesigma::setup;
use onesigma::train::config::{Config, ModelConfig, ModelType};
use onesigma::train::task::Task;

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as promised by the caller.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn engine(program: &Program) -> Box<dyn Engine> {
    let backend = onesigma_backend_cpu::CpuBackend::with_threads(2).expect("two threads");
    let mut engine = backend.compile(program).expect("supported");
    for (index, slot) in program.slots().iter().enumerate() {
        if slot.kind == SlotKind::Input {
            engine.write(SlotId::new(index), &vec![0; slot.bytes()]).expect("one frame");
        }
    }
    engine
}

/// Small runs that differ in what a step consists of.
fn configs() -> Vec<Config> {
    let model = ModelConfig { layers: 2, heads: 2, hidden: 64, seq: 64, ..ModelConfig::default() };
    let base = Config { batch: 2, model, ..Config::default() };
    let with = |change: &dyn Fn(&mut Config)| {
        let mut config = base.clone();
        change(&mut config);
        config
    };
    vec![
        with(&|config| config.recipe = "unit-fp8".into()),
        with(&|config| config.recipe = "f32".into()),
        with(&|config| config.recipe = "fp16-loss-scale".into()),
        with(&|config| config.recipe = "u-mup-fp8".into()),
        with(&|config| config.accumulate = 2),
        with(&|config| config.optimizer = "sgd".into()),
        with(&|config| config.memory = Some("2MiB".parse().expect("a size"))),
        with(&|config| config.model_type = ModelType::Bert),
        with(&|config| {
            config.model_type = ModelType::Bert;
            config.task = Some(Task::Span);
        }),
    ]
}

/// All in one test, because the count is the whole process's.
#[test]
fn steps_allocate_nothing() {
    let mut entries_seen = Vec::new();
    for config in configs() {
        let training = setup::program(&config).expect("a program");
        let is_fitted = training.memory.is_some_and(|memory| !memory.entries.is_empty());
        assert_eq!(is_fitted, config.memory.is_some(), "the budget is to be below the whole");
        let program = training.program;
        let mut engine = engine(&program);
        for (index, entry) in program.entries().iter().enumerate() {
            let (id, name) = (EntryId::new(index), &entry.name);
            // Warm up: scratch memory of each thread is made when first needed.
            engine.run(id, 4).expect("runs");
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            engine.run(id, 4).expect("runs");
            let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
            assert_eq!(allocations, 0, "{name} of {config:?}: allocations in 4 steps");
            entries_seen.push(name.clone());
        }
    }
    for name in ["init", "train_step", "accumulate", "apply", "eval_step", "generate_step"] {
        assert!(entries_seen.iter().any(|seen| seen == name), "{name} did not run");
    }
}
