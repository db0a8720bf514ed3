//! Limits and failures of devices: small bindings, no extra features, no adapter, no memory.
#![allow(clippy::print_stdout)] // a skip is said aloud

mod common;

use onesigma_backend::{Backend, Error};
use onesigma_backend_wgpu::{Options, WgpuBackend};
use onesigma_graph::{
    DType, EntryId, Graph, Module, Op, Program, ReduceKind, Role, SlotId, SlotKind,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// A product, a softmax, sums over both axes, a permutation and an update of the state.
fn program() -> onesigma_graph::Result<(Program, [SlotId; 2])> {
    let mut module = Module::new();
    let mut slot = |name: &str, kind, shape: &[usize]| {
        module.slot(name, kind, shape.to_vec(), DType::F32, Role::Activation)
    };
    let w = slot("w", SlotKind::State, &[48, 64])?;
    let y = slot("y", SlotKind::Output, &[64, 48])?;
    let z = slot("z", SlotKind::Output, &[64])?;
    let mut graph = Graph::new();
    let read = module.read(&mut graph, w);
    let linear = Op::MatMul { transpose_left: true, transpose_right: false };
    let square = graph.op(linear, &[read, read]).one()?;
    let share = graph.op(Op::Softmax { mult: 0.5 }, &[square]).one()?;
    let mixed = graph.matmul(read, share).one()?;
    let turned = graph.permute(mixed, &[1, 0])?;
    let new = graph.map(&[read, mixed], |x| x[0].clone() * 0.5 + x[1].clone())?.one()?;
    let sums = graph.reduce(ReduceKind::Sum, &[new], &[0], false, |x| x[0].clone())?.one()?;
    graph.write(w, new);
    graph.write(y, turned);
    graph.write(z, sums);
    module.entry("main", graph)?;
    Ok((Program::new(module)?, [y, z]))
}

fn results(backend: &WgpuBackend) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let (program, outputs) = program()?;
    let mut engine = backend.compile(&program)?;
    let values = (0..48 * 64).map(|n| ((n * 37 % 101) as f32 - 50.0) / 50.0);
    let bytes: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
    engine.write(program.find_slot("w")?, &bytes)?;
    engine.run(EntryId::new(0), 3)?;
    let mut all = vec![0; bytes.len()];
    engine.read(program.find_slot("w")?, &mut all)?;
    for slot in outputs {
        let mut own = vec![0; 3 * program.slots()[slot.index()].bytes()];
        engine.read(slot, &mut own)?;
        all.extend(own);
    }
    Ok(all)
}

#[test]
fn tensors_in_several_buffers_give_the_same_bits() -> Outcome {
    let Some(whole) = common::backend(&Options::default()) else { return Ok(()) };
    // 48 x 64 F32 are 12 KiB: three buffers each.
    let options = Options { segment_bytes: Some(4096), ..Options::default() };
    let Some(split) = common::backend(&options) else { return Ok(()) };
    assert_eq!(results(&split)?, results(&whole)?);
    Ok(())
}

#[test]
fn what_every_device_has_is_enough() -> Outcome {
    let Some(whole) = common::backend(&Options::default()) else { return Ok(()) };
    let Some(portable) = common::backend(&Options { portable: true, ..Options::default() }) else {
        return Ok(());
    };
    let values = |bytes: Vec<u8>| -> Vec<f32> {
        bytes.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
    };
    // Without subgroups sums are in another order.
    for (found, expected) in values(results(&portable)?).iter().zip(values(results(&whole)?)) {
        assert!((found - expected).abs() <= 1e-4 * expected.abs().max(1.0), "{found}, {expected}");
    }
    Ok(())
}

#[test]
fn an_adapter_that_is_not_there_is_unavailable() {
    let error = WgpuBackend::open(Some("no such adapter")).expect_err("there is none");
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
}

#[test]
fn a_program_beyond_the_memory_is_refused() -> Outcome {
    let Some(backend) = common::backend(&Options::default()) else { return Ok(()) };
    let mut module = Module::new();
    // 1 TiB.
    let shape = [1 << 20, 1 << 18];
    let slot = module.slot("w", SlotKind::State, shape, DType::F32, Role::Activation)?;
    let mut graph = Graph::new();
    let read = module.read(&mut graph, slot);
    graph.write(slot, read);
    module.entry("main", graph)?;
    let program = Program::new(module)?;
    let error = backend.compile(&program).err().ok_or("it fits")?;
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
    Ok(())
}
