//! Nothing allocates while a program runs: counted over all threads.
#![allow(unsafe_code)] // a counting allocator

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use onesigma::backend::{Backend, Engine};
use onesigma::graph::{Program, SlotId, SlotKind};
use onesigma::setup;
use onesigma::train::config::{Config, ModelConfig};

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

/// All in one test, because the count is the whole process's.
#[test]
fn steps_allocate_nothing() {
    for recipe in ["unit-fp8", "f32", "fp16"] {
        let config = Config {
            recipe: recipe.to_owned(),
            batch: 2,
            model: ModelConfig {
                layers: 2,
                heads: 2,
                hidden: 64,
                seq: 64,
                ..ModelConfig::default()
            },
            ..Config::default()
        };
        let program = setup::program(&config).expect("a program").program;
        let mut engine = engine(&program);
        for entry in ["init", "train_step", "eval_step", "generate_step"] {
            let id = program.find_entry(entry).expect("there is one");
            // Warm up: scratch memory of each thread is made when first needed.
            engine.run(id, 4).expect("runs");
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            engine.run(id, 4).expect("runs");
            let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
            assert_eq!(allocations, 0, "{recipe} {entry}: allocations in 4 steps");
        }
    }
}
