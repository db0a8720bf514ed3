//! What a program sees of a device that is lost.

use std::sync::Arc;

use onesigma_backend::{Engine, Error};
use onesigma_graph::{DType, EntryId, Graph, Module, Program, Role, SlotKind};

use crate::backend::{Options, Tuning};
use crate::engine::WgpuEngine;
use crate::gpu::Gpu;

type Outcome = Result<(), Box<dyn std::error::Error>>;

#[test]
#[allow(clippy::print_stdout)] // a skip is said aloud
fn every_call_after_the_loss_of_the_device_fails() -> Outcome {
    let gpu = match pollster::block_on(Gpu::open(&Options::default())) {
        Ok(gpu) => Arc::new(gpu),
        Err(error @ Error::Unavailable { .. }) => {
            println!("skipped: {error}");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    let mut module = Module::new();
    let x = module.slot("x", SlotKind::State, [8], DType::F32, Role::Activation)?;
    let mut graph = Graph::new();
    let read = module.read(&mut graph, x);
    let doubled = graph.map(&[read], |x| x[0].clone() * 2.0)?.one()?;
    graph.write(x, doubled);
    module.entry("main", graph)?;
    let program = Program::new(module)?;
    let segment = gpu.segment_bytes();
    let mut engine = WgpuEngine::new(&program, Arc::clone(&gpu), segment, Tuning::default())?;
    let entry = EntryId::new(0);
    engine.run(entry, 1)?;

    gpu.device.destroy();
    // The loss is told while the device is polled.
    let lost = |result: onesigma_backend::Result<()>| match result {
        Err(Error::Device { reason, .. }) => reason.contains("lost"),
        _ => false,
    };
    let _ = engine.synchronize();
    assert!(lost(engine.run(entry, 1)), "run");
    assert!(lost(engine.write(x, &[0; 32])), "write");
    assert!(lost(engine.read(x, &mut [0; 32])), "read");
    assert!(lost(engine.synchronize()), "synchronize");
    let again = WgpuEngine::new(&program, gpu, segment, Tuning::default());
    assert!(lost(again.map(|_| ())), "compile");
    Ok(())
}
