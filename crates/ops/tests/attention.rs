//! Attention from parts, which dropout needs, against the fused op.

use onesigma_backend::{Engine, RefBackend};
use onesigma_format::{Noise, philox};
use onesigma_graph::{DType, Graph, Module, Program, ReduceKind, Role, SlotId, SlotKind, autodiff};
use onesigma_ops::{Attention, Error, Parametrisation, attention, dropout};

const SHAPES: [[usize; 4]; 3] = [[2, 3, 2, 4], [2, 5, 2, 4], [2, 5, 2, 4]];

/// Output and gradients of q, k and v, in f64.
fn run(p: Parametrisation, options: Attention) -> Result<Vec<Vec<f64>>, Error> {
    let mut module = Module::new();
    let (seed, step) = (module.seed_slot()?, module.step_slot()?);
    let mut graph = Graph::new();
    let mut slots = Vec::new();
    for (name, shape) in ["q", "k", "v"].into_iter().zip(SHAPES) {
        slots.push(module.slot(name, SlotKind::Input, shape, DType::F32, Role::Data)?);
    }
    let dy = module.slot("dy", SlotKind::Input, SHAPES[0], DType::F32, Role::Data)?;
    let qkv = [slots[0], slots[1], slots[2]].map(|slot| module.read(&mut graph, slot));
    let upstream = module.read(&mut graph, dy);
    let y = attention(&mut graph, p, qkv, options)?;
    let axes = [0, 1, 2, 3];
    let product = |x: &[onesigma_graph::expr::Term]| x[0].clone() * x[1].clone();
    let loss = graph.reduce(ReduceKind::Sum, &[y, upstream], &axes, false, product)?.one()?;
    let mut wanted = vec![y];
    wanted.extend(autodiff::gradients(&mut graph, loss, &qkv, None)?);
    let mut outputs: Vec<SlotId> = Vec::new();
    for (at, &value) in wanted.iter().enumerate() {
        let shape = graph.shape(value).clone();
        let name = format!("output{at}");
        let slot = module.slot(&name, SlotKind::Output, shape, DType::F32, Role::Statistic)?;
        graph.write(slot, value);
        outputs.push(slot);
    }
    module.entry("run", graph)?;
    let program = Program::new(module)?;
    let mut engine = RefBackend::exact().executor(&program)?;
    engine.write(seed, &[9, 0, 0, 0, 0, 0, 0, 0])?;
    engine.write(step, &[0; 4])?;
    slots.push(dy);
    for (stream, &slot) in slots.iter().enumerate() {
        let mut values = vec![0.0; program.slots()[slot.index()].shape.numel()];
        let noise = Noise { seed: 5, tensor: stream as u32, step: 0, offset: 0 };
        philox::fill_normal(noise, &mut values);
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        engine.write(slot, &bytes)?;
    }
    engine.run(program.find_entry("run")?, 1)?;
    outputs.iter().map(|&slot| Ok(engine.tensor(slot)?.cloned().unwrap_or_default())).collect()
}

#[test]
fn attention_from_parts_equals_the_fused_op() -> Result<(), Error> {
    for p in [Parametrisation::Regular, Parametrisation::Unit] {
        for causal in [false, true] {
            let fused = Attention { causal, mult: 1.5, ..Attention::default() };
            // So rare that nothing is dropped.
            let parts = Attention { dropout: 1e-12, ..fused };
            for (a, b) in run(p, fused)?.iter().zip(run(p, parts)?) {
                assert!(!a.is_empty());
                let close = a.iter().zip(&b).all(|(x, y)| (x - y).abs() < 1e-9);
                assert!(close, "{p:?} {causal}: {a:?} {b:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn dropped_weights_change_the_result_and_evaluation_drops_nothing() -> Result<(), Error> {
    let p = Parametrisation::Regular;
    let none = run(p, Attention::default())?;
    let half = Attention { dropout: 0.5, ..Attention::default() };
    assert_ne!(run(p, half)?, none);
    assert_eq!(run(p, Attention { training: false, ..half })?, none);
    Ok(())
}

#[test]
fn a_probability_of_one_is_refused() -> Result<(), Error> {
    let mut module = Module::new();
    let mut graph = Graph::new();
    let x = module.slot("x", SlotKind::Input, [4], DType::F32, Role::Data)?;
    let x = module.read(&mut graph, x);
    let error = dropout(&mut graph, Parametrisation::Unit, x, 1.0, true).expect_err("all is lost");
    assert_eq!(error.to_string(), "dropout: `p` is 1, expected a probability in [0, 1)");
    Ok(())
}
