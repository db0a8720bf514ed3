//! Blocks of layers at initialisation: unit variance forward and backward where the rules promise
//! it, and the plain functions in a regular network.

use onesigma_backend::{Engine, RefBackend};
use onesigma_format::{Noise, philox};
use onesigma_graph::{
    DType, Graph, Module, Program, ReduceKind, Role, SlotId, SlotKind, ValueId, autodiff,
};
use onesigma_ops::{
    Attention, Error, MhsaWeights, MlpWeights, Parametrisation, TransformerLayer, mhsa, mlp,
    transformer_layer,
};

const WIDTH: usize = 64;
const INNER: usize = 256;
const SHAPES: [&[usize]; 6] = [
    &[4, 32, WIDTH],
    &[3 * WIDTH, WIDTH],
    &[WIDTH, WIDTH],
    &[INNER, WIDTH],
    &[INNER, WIDTH],
    &[WIDTH, INNER],
];

/// Root mean squares of the output of a block and of the gradients of the inputs that it reads,
/// for standard normal inputs and upstream gradient; 0 for those it does not read.
fn run(
    block: impl Fn(&mut Graph, &[ValueId]) -> Result<ValueId, Error>,
    reads: &[usize],
) -> Result<[f64; 7], Error> {
    let mut module = Module::new();
    let mut graph = Graph::new();
    let mut slots = Vec::new();
    for (n, shape) in SHAPES.into_iter().enumerate() {
        let name = format!("in{n}");
        slots.push(module.slot(&name, SlotKind::Input, shape, DType::F32, Role::Data)?);
    }
    let values: Vec<ValueId> = slots.iter().map(|&slot| module.read(&mut graph, slot)).collect();
    let y = block(&mut graph, &values)?;
    let dy = module.slot("dy", SlotKind::Input, SHAPES[0], DType::F32, Role::Data)?;
    slots.push(dy);
    let dy = module.read(&mut graph, dy);
    let loss = graph
        .reduce(ReduceKind::Sum, &[y, dy], &[0, 1, 2], false, |x| x[0].clone() * x[1].clone())?
        .one()?;
    let wanted: Vec<ValueId> = reads.iter().map(|&n| values[n]).collect();
    let gradients = autodiff::gradients(&mut graph, loss, &wanted, None)?;
    let mut outputs = Vec::new();
    for (n, value) in std::iter::once(y).chain(gradients).enumerate() {
        let shape = graph.shape(value).clone();
        let name = format!("out{n}");
        outputs.push(module.slot(&name, SlotKind::Output, shape, DType::F32, Role::Statistic)?);
        graph.write(outputs[n], value);
    }
    module.entry("run", graph)?;
    let program = Program::new(module)?;
    let mut engine = RefBackend::exact().executor(&program)?;
    for (tensor, &slot) in slots.iter().enumerate() {
        let mut values = vec![0.0; program.slots()[slot.index()].shape.numel()];
        let noise = Noise { seed: 3, tensor: tensor as u32, step: 0, offset: 0 };
        philox::fill_normal(noise, &mut values);
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        engine.write(slot, &bytes)?;
    }
    engine.run(program.find_entry("run")?, 1)?;
    let rms = |slot: SlotId| {
        let values = engine.tensor(slot).expect("a slot").expect("written");
        (values.iter().map(|x| x * x).sum::<f64>() / values.len() as f64).sqrt()
    };
    let mut found = [0.0; 7];
    found[0] = rms(outputs[0]);
    for (at, &n) in reads.iter().enumerate() {
        found[1 + n] = rms(outputs[1 + at]);
    }
    Ok(found)
}

const FEED_FORWARD: [usize; 3] = [3, 4, 5];

fn feed_forward(x: &[ValueId]) -> MlpWeights {
    MlpWeights { up: x[3], gate: x[4], down: x[5] }
}

fn self_attention(x: &[ValueId]) -> MhsaWeights {
    MhsaWeights { qkv: x[1], output: x[2] }
}

fn within(found: &[f64], low: f64, high: f64) {
    assert!(found.iter().all(|sigma| (low..high).contains(sigma)), "{found:?}");
}

#[test]
fn a_gated_mlp_has_unit_variance_both_ways() -> Result<(), Error> {
    let block =
        |p| move |graph: &mut Graph, x: &[ValueId]| mlp(graph, p, x[0], feed_forward(x), 1.0);
    let found = run(block(Parametrisation::UMup), &[0, 3, 4, 5])?;
    // The gradient of x is the sum of two, by `up` and by `gate`.
    within(&[found[0], found[1] / 2_f64.sqrt(), found[6]], 0.85, 1.15);
    within(&FEED_FORWARD.map(|n| found[1 + n]), 0.7, 1.3);
    let plain = run(block(Parametrisation::Regular), &[0, 3, 4, 5])?;
    assert!(plain[0] > 100.0 && plain[1] > 100.0, "{plain:?}");
    Ok(())
}

#[test]
fn self_attention_has_unit_variance_forward() -> Result<(), Error> {
    for causal in [true, false] {
        let options = Attention { causal, ..Attention::default() };
        let p = Parametrisation::UMup;
        let block =
            |graph: &mut Graph, x: &[ValueId]| mhsa(graph, p, x[0], self_attention(x), 4, options);
        let found = run(block, &[0, 1, 2])?;
        within(&[found[0], found[3]], 0.7, 1.4);
        // Only the values' third of the gradients is of unit scale, see the book.
        within(&found[1..3], 0.35, 1.2);
    }
    Ok(())
}

#[test]
fn a_layer_keeps_unit_variance_in_every_scaled_parametrisation() -> Result<(), Error> {
    for p in [Parametrisation::Unit, Parametrisation::UMup, Parametrisation::MuS] {
        let options = TransformerLayer {
            heads: 4,
            taus: [0.7, 0.5],
            attention: Attention::default(),
            dropout: 0.0,
            mult: 1.0,
            eps: 1e-5,
        };
        let block = |graph: &mut Graph, x: &[ValueId]| {
            transformer_layer(graph, p, x[0], self_attention(x), feed_forward(x), options)
        };
        let found = run(block, &[0, 1, 2, 3, 4, 5])?;
        within(&found[..2], 0.8, 1.6);
    }
    Ok(())
}

#[test]
fn heads_that_do_not_divide_the_width_are_refused() {
    let block = |graph: &mut Graph, x: &[ValueId]| {
        let p = Parametrisation::UMup;
        mhsa(graph, p, x[0], self_attention(x), 5, Attention::default())
    };
    let message = run(block, &[0]).expect_err("5 heads of width 64").to_string();
    assert!(message.contains("`heads` is 5") && message.contains("the width, 64"), "{message}");
}
