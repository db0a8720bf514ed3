//! Program files made of arbitrary bytes, and what is done with those that are valid. Shared with
//! the fuzz target of `crates/graph`.
#![allow(dead_code)] // each user has its own part

use onesigma_backend::null::flops;
use onesigma_backend::{Backend, Device, Engine, NullBackend};
use onesigma_format::{Conversion, Format, Overflow, Rounding};
use onesigma_graph::file::Description;
use onesigma_graph::{
    AdamWConfig, DType, Distribution, EntryId, Graph, Module, Op, Program, ReduceKind, Role,
    SlotId, SlotKind, autodiff, print,
};
use std::sync::LazyLock;

/// Header of a program file.
const HEADER: usize = 28;

/// A training step with most kinds of ops.
pub fn program() -> Result<Program, onesigma_graph::Error> {
    let mut module = Module::new();
    module.seed_slot()?;
    let step = module.step_slot()?;
    let ids = module.slot("ids", SlotKind::Input, [2, 3], DType::U32, Role::Data)?;
    let lr = module.slot("lr", SlotKind::Input, [], DType::F32, Role::Statistic)?;
    let loss_slot = module.slot("loss", SlotKind::Output, [], DType::F32, Role::Statistic)?;
    let [w, m, v] =
        [("w", Role::MasterWeight), ("m", Role::FirstMoment), ("v", Role::SecondMoment)]
            .map(|(name, role)| module.slot(name, SlotKind::State, [5, 4], DType::F32, role));
    let slots = [w?, m?, v?];
    let mut graph = Graph::new();
    let [ids, lr, step] = [ids, lr, step].map(|slot| module.read(&mut graph, slot));
    let [w, m, v] = slots.map(|slot| module.read(&mut graph, slot));
    let how =
        Conversion { rounding: Rounding::Stochastic { bits: 16 }, overflow: Overflow::Special };
    let narrow = DType::Float(Format::E4M3);
    let x = graph.op(Op::Gather, &[w, ids]).stored_as(narrow, how).one()?;
    let normed = graph.op(Op::LayerNorm { eps: 1e-5 }, &[x]).one()?;
    let left = graph.op(Op::Slice { axis: 2, start: 0, len: 2 }, &[normed]).one()?;
    let right = graph.op(Op::Slice { axis: 2, start: 2, len: 2 }, &[normed]).one()?;
    let joined = graph.op(Op::Concat { axis: 2 }, &[right, left]).one()?;
    let distribution = Distribution::Bernoulli { p: 0.9 };
    let mask = graph.op(Op::Random { distribution, shape: [2, 3, 4].into() }, &[]).one()?;
    let dropped = graph.map(&[joined, mask], |x| x[0].clone() * x[1].clone())?.one()?;
    let heads = graph.reshape(dropped, [2, 3, 2, 2])?;
    let attended = graph
        .op(Op::Attention { causal: true, logit_scale: 0.7 }, &[heads, heads, heads])
        .all()?[0];
    let flat = graph.reshape(attended, [2, 3, 4])?;
    let op = Op::MatMul { transpose_left: false, transpose_right: true };
    let logits = graph.op(op, &[flat, w]).alpha(0.5).one()?;
    let loss = graph.op(Op::CrossEntropy { mult: 1.0, mean: true }, &[logits, ids]).one()?;
    let gradient = autodiff::gradients(&mut graph, loss, &[w], None)?[0];
    let turned = graph.permute(gradient, &[1, 0])?;
    let largest = graph
        .reduce(ReduceKind::Max, &[turned], &[0, 1], false, |x| x[0].abs())?
        .role(Role::Statistic)
        .one()?;
    let factor = graph.map(&[largest], |x| x[0].less(10.0))?.role(Role::Statistic).one()?;
    let config = AdamWConfig { beta1: 0.9, beta2: 0.99, eps: 1e-6, decay: 0.0, lr_scale: 1.0 };
    let updated = graph.op(Op::AdamW(config), &[w, gradient, m, v, lr, step, factor]).all()?;
    for (slot, value) in slots.into_iter().zip(updated) {
        graph.write(slot, value);
    }
    graph.write(loss_slot, loss);
    module.entry("train_step", graph)?;
    Program::new(module)
}

/// The ops that [`program`] lacks.
fn others() -> Result<Program, onesigma_graph::Error> {
    let mut module = Module::new();
    let x = module.slot("x", SlotKind::Input, [2, 3, 4], DType::F32, Role::Data)?;
    let mask = module.slot("mask", SlotKind::Input, [2, 3], DType::U32, Role::Data)?;
    let w = module.slot("w", SlotKind::State, [4], DType::Float(Format::BF16), Role::Weight)?;
    let y = module.slot("y", SlotKind::Output, [2, 3, 4], DType::F32, Role::Activation)?;
    let z = module.slot("z", SlotKind::Output, [3, 4], DType::F32, Role::Activation)?;
    let dw = module.slot("dw", SlotKind::Output, [4], DType::F32, Role::WeightGrad)?;
    let mut graph = Graph::new();
    let [x, mask, w] = [x, mask, w].map(|slot| module.read(&mut graph, slot));
    let normal = graph.op(Op::RmsNorm { eps: 1e-5 }, &[x, w]).one()?;
    let heads = graph.reshape(normal, [2, 3, 2, 2])?;
    let op = Op::Attention { causal: false, logit_scale: 0.5 };
    let seen = graph.op(op, &[heads, heads, heads, mask]).all()?[0];
    let seen = graph.reshape(seen, [2, 3, 4])?;
    let narrow = graph.op(Op::Cast { to: DType::Float(Format::E5M2) }, &[seen]).one()?;
    let even = graph.op(Op::Softmax { mult: 2.0 }, &[narrow]).one()?;
    let distribution = Distribution::Uniform { low: -1.0, high: 1.0 };
    let noise = graph.op(Op::Random { distribution, shape: [2, 3, 4].into() }, &[]).one()?;
    let sum = graph.map(&[even, noise], |x| x[0].max(x[1].clone()))?.one()?;
    let op = Op::CrossEntropy { mult: 1.0, mean: false };
    let loss = graph.op(op, &[sum, mask, mask]).one()?;
    let gradient = autodiff::gradients(&mut graph, loss, &[w], None)?[0];
    let flat = graph.reshape(sum, [6, 4])?;
    let ids = graph.reshape(mask, [6])?;
    let rows = graph.op(Op::ScatterAdd { rows: 3 }, &[flat, ids]).one()?;
    for (slot, value) in [(y, sum), (z, rows), (dw, gradient)] {
        graph.write(slot, value);
    }
    module.seed_slot()?;
    module.step_slot()?;
    module.entry("step", graph)?;
    Program::new(module)
}

/// Valid files, without a description.
static SEEDS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let bytes = |program: Result<Program, _>| {
        program.and_then(|program| program.to_bytes(&Description::new()))
    };
    [bytes(program()), bytes(others())].into_iter().map(|seed| seed.expect("valid")).collect()
});

/// A file with these contents: right magic, lengths and checksum.
fn sealed(program: &[u8]) -> Vec<u8> {
    let mut bytes = SEEDS[0][..HEADER].to_vec();
    bytes[12..16].copy_from_slice(&2_u32.to_le_bytes());
    bytes[16..24].copy_from_slice(&(program.len() as u64).to_le_bytes());
    bytes.extend(b"{}");
    bytes.extend(program);
    let checksum = crc32fast::hash(&bytes[HEADER..]).to_le_bytes();
    bytes[HEADER - 4..HEADER].copy_from_slice(&checksum);
    bytes
}

/// Bytes as a file: as they are, as the contents of one, or as changes of a valid one, four bytes
/// each (where, where, how, with what).
fn file(data: &[u8]) -> Vec<u8> {
    let Some((&mode, data)) = data.split_first() else { return Vec::new() };
    match mode % 4 {
        0 => data.to_vec(),
        1 => sealed(data),
        seed => {
            let mut program = SEEDS[usize::from(seed) - 2][HEADER + 2..].to_vec();
            for &[low, high, how, byte] in data.as_chunks().0 {
                let at = usize::from(u16::from_le_bytes([low, high])) % program.len().max(1);
                match how % 8 {
                    0 => program.insert(at, byte),
                    1 => drop(program.remove(at)),
                    2 => program[at] ^= 1 << (byte % 8),
                    3 => program[at] = program[at].wrapping_add(byte % 5).wrapping_sub(2),
                    // The largest number of the encoding.
                    4 => drop(program.splice(at..=at, [0xff, 0xff, 0xff, 0xff, 0x0f])),
                    _ => program[at] = byte,
                }
            }
            sealed(&program)
        }
    }
}

/// The program in a file of these bytes, if they make a valid one. What is read is what would be
/// written.
pub fn read(data: &[u8]) -> Option<Program> {
    let (program, description) = Program::from_bytes(&file(data)).ok()?;
    let bytes = program.to_bytes(&description).expect("its description was short enough");
    let (again, _) = Program::from_bytes(&bytes).expect("valid before");
    let again = again.to_bytes(&description).expect("as short");
    assert!(bytes == again, "what is read differs from what was written");
    Some(program)
}

/// What people see of a program, and what it costs.
pub fn look(program: &Program) {
    assert!(!print::program_text(program).is_empty());
    let null = NullBackend::new(Device::server_core(1 << 30));
    for (index, entry) in program.entries().iter().enumerate() {
        assert!(print::graph_dot(&entry.name, &entry.graph).ends_with("}\n"));
        let cost = null.cost(program, EntryId::new(index)).expect("the entry exists");
        assert!(cost.seconds >= 0.0);
    }
    if let Ok(mut engine) = null.compile(program) {
        exercise(program, engine.as_mut());
    }
}

/// Runs every entry, unless that takes long or much memory.
pub fn run(program: &Program, backend: &dyn Backend) {
    let graphs = program.entries().iter().map(|entry| &entry.graph);
    let work: f64 =
        graphs.flat_map(|graph| graph.nodes().iter().map(|node| flops(graph, node))).sum();
    if work > 2e6 || program.arena_bytes() > 1 << 22 {
        return;
    }
    if let Ok(mut engine) = backend.compile(program) {
        exercise(program, engine.as_mut());
    }
}

/// Errors are as good as results.
fn exercise(program: &Program, engine: &mut dyn Engine) {
    for (index, slot) in program.slots().iter().enumerate() {
        if slot.kind != SlotKind::Output && slot.bytes() <= 1 << 22 {
            let _ = engine.write(SlotId::new(index), &vec![1; slot.bytes()]);
        }
    }
    for index in 0..program.entries().len() {
        let _ = engine.run(EntryId::new(index), 2);
    }
    for (index, slot) in program.slots().iter().enumerate() {
        if slot.bytes() <= 1 << 22 {
            let _ = engine.read(SlotId::new(index), &mut vec![0; slot.bytes()]);
        }
    }
}
