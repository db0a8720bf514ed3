//! A training step of a model as a program, run on any backend, for the tests of this folder.
#![allow(dead_code)] // each test uses a part

pub mod checks;
pub mod forward;
pub mod plain;

use onesigma_backend::{Backend, RefBackend};
use onesigma_format::{Noise, philox};
use onesigma_graph::passes::clean::clean;
use onesigma_graph::{DType, Graph, Module, Program, Role, SlotId, SlotKind, ValueId, autodiff};
use onesigma_models::{GptConfig, Init, ParamSpec, Params, gpt_loss};
use onesigma_ops::Parametrisation;

/// An input of integers: name, shape and content.
pub struct Input {
    pub name: &'static str,
    pub shape: Vec<usize>,
    pub values: Vec<u32>,
}

/// Everything that a BERT with any head reads, for a vocabulary of 13.
pub fn bert_inputs() -> Vec<Input> {
    let input =
        |name, shape: &[usize], values: Vec<u32>| Input { name, shape: shape.to_vec(), values };
    vec![
        input("tokens", &[2, 5], numbers(10, 13, 1000)),
        input("segments", &[2, 5], vec![0, 0, 1, 1, 1, 0, 1, 1, 1, 1]),
        input("mask", &[2, 5], vec![1, 1, 1, 1, 1, 1, 1, 1, 1, 0]),
        input("rows", &[3], vec![1, 4, 7]),
        input("targets", &[3], numbers(3, 13, 1001)),
        input("counted", &[3], vec![1, 1, 0]),
        input("labels", &[2], vec![1, 0]),
        input("ends", &[2, 2], vec![0, 3, 2, 3]),
    ]
}

/// Forward and backward pass of one batch.
pub struct Step {
    pub p: Parametrisation,
    pub specs: Vec<ParamSpec>,
    /// Initial parameters as the engine sees them.
    pub weights: Vec<Vec<f32>>,
    pub inputs: Vec<Input>,
    pub program: Program,
    pub slots: Slots,
    /// Name of every float tensor that an op computes, with its slot; empty unless asked for.
    pub all: Vec<(String, SlotId)>,
}

/// Where things lie in the program.
pub struct Slots {
    pub inputs: Vec<SlotId>,
    pub weights: Vec<SlotId>,
    pub loss: SlotId,
    pub grads: Vec<SlotId>,
}

impl Step {
    /// The step whose loss `build` makes of the inputs.
    pub fn new(
        specs: Vec<ParamSpec>,
        p: Parametrisation,
        inputs: Vec<Input>,
        observe: bool,
        build: impl FnOnce(&mut Graph, &mut Params, &[ValueId]) -> onesigma_models::Result<ValueId>,
    ) -> Self {
        let mut module = Module::new();
        let mut graph = Graph::new();
        let mut input_slots = Vec::new();
        let mut input_values = Vec::new();
        for Input { name, shape, .. } in &inputs {
            let slot = module.slot(name, SlotKind::Input, shape.clone(), DType::U32, Role::Data);
            input_slots.push(slot.expect("names are unique"));
            input_values.push(module.read(&mut graph, input_slots[input_slots.len() - 1]));
        }
        let mut weights = Vec::new();
        let mut values = Vec::new();
        for spec in &specs {
            let (shape, role) = (spec.shape.clone(), Role::MasterWeight);
            let slot = module.slot(&spec.name, SlotKind::State, shape, DType::F32, role);
            weights.push(slot.expect("names are unique"));
            values.push((spec.name.clone(), module.read(&mut graph, weights[weights.len() - 1])));
        }
        let parameters: Vec<ValueId> = values.iter().map(|(_, value)| *value).collect();
        let mut params = Params::new(values);
        let out = build(&mut graph, &mut params, &input_values).expect("it builds");
        let gradients = autodiff::gradients(&mut graph, out, &parameters, None);
        let gradients = gradients.expect("it is differentiable");
        let output = |module: &mut Module, graph: &mut Graph, name: &str, value: ValueId| {
            let shape = graph.shape(value).clone();
            let slot = module.slot(name, SlotKind::Output, shape, DType::F32, Role::Statistic);
            let slot = slot.expect("names are unique");
            graph.write(slot, value);
            slot
        };
        let loss = output(&mut module, &mut graph, "loss", out);
        let grads: Vec<SlotId> = specs
            .iter()
            .zip(&gradients)
            .map(|(spec, &gradient)| {
                output(&mut module, &mut graph, &format!("grad.{}", spec.name), gradient)
            })
            .collect();
        let mut graph = clean(&graph);
        let mut all = Vec::new();
        if observe {
            let values = graph.values().len();
            for value in (0..values).map(ValueId::new) {
                let info = graph.value(value);
                let op = &graph.node(info.producer).op;
                let computed = !op.is_movement() && !matches!(op, onesigma_graph::Op::Slot(_));
                let hidden = matches!(info.role, Role::Statistic | Role::Data);
                if !computed || hidden || info.dtype != DType::F32 {
                    continue;
                }
                let name = format!("{} {}", info.role, graph.value_name(value));
                let slot = output(&mut module, &mut graph, &format!("{name} {value}"), value);
                all.push((name, slot));
            }
        }
        module.entry("step", graph).expect("slots exist");
        let program = Program::new(module).expect("a valid program");
        let weights_f32 = specs.iter().enumerate().map(|(n, spec)| initial(spec, n as u32));
        Self {
            p,
            weights: weights_f32.collect(),
            inputs,
            program,
            slots: Slots { inputs: input_slots, weights, loss, grads },
            all,
            specs,
        }
    }

    /// Runs the step in f64 and gives a reader of slots.
    pub fn run_exact(&self) -> impl Fn(SlotId) -> Vec<f64> {
        let backend = RefBackend::exact();
        let mut engine = backend.executor(&self.program).expect("the reference runs everything");
        self.feed(&mut engine);
        move |slot| engine.tensor(slot).expect("a slot").expect("it was written").clone()
    }

    /// Runs the step on a backend and gives the f32 content of slots.
    pub fn run(&self, backend: &dyn Backend, slots: &[SlotId]) -> Vec<Vec<f64>> {
        let mut engine = backend.compile(&self.program).expect("it compiles");
        self.feed(&mut *engine);
        let mut read = |slot: &SlotId| {
            let mut bytes = vec![0; self.program.slots()[slot.index()].bytes()];
            engine.read(*slot, &mut bytes).expect("a slot");
            let words = bytes.as_chunks().0.iter();
            words.map(|word| f64::from(f32::from_le_bytes(*word))).collect()
        };
        slots.iter().map(&mut read).collect()
    }

    fn feed(&self, engine: &mut dyn onesigma_backend::Engine) {
        for (&slot, input) in self.slots.inputs.iter().zip(&self.inputs) {
            let bytes: Vec<u8> = input.values.iter().flat_map(|id| id.to_le_bytes()).collect();
            engine.write(slot, &bytes).expect("right size");
        }
        for (&slot, values) in self.slots.weights.iter().zip(&self.weights) {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            engine.write(slot, &bytes).expect("right size");
        }
        let entry = self.program.find_entry("step").expect("it is there");
        engine.run(entry, 1).expect("it runs");
    }
}

/// A step of GPT with what an evaluation of it needs.
pub struct GptStep {
    pub step: Step,
    pub config: GptConfig,
    pub batch: usize,
    pub seq: usize,
}

impl GptStep {
    pub fn new(
        config: GptConfig,
        p: Parametrisation,
        [batch, seq]: [usize; 2],
        observe: bool,
    ) -> Self {
        let specs = config.parameters(p).expect("a possible model");
        let vocab = config.vocab_size as u32;
        let ids = |name, stream| Input {
            name,
            shape: vec![batch, seq],
            values: numbers(batch * seq, vocab, stream),
        };
        let inputs = vec![ids("tokens", 1000), ids("targets", 1001)];
        let step = Step::new(specs, p, inputs, observe, |graph, params, x| {
            Ok(gpt_loss(graph, params, &config, p, x[0], x[1], true)?.loss)
        });
        Self { step, config, batch, seq }
    }
}

/// `count` numbers below `below`, without pattern.
pub fn numbers(count: usize, below: u32, stream: u32) -> Vec<u32> {
    let mut words = vec![0; count];
    philox::fill_u32(noise(stream), &mut words);
    words.iter_mut().for_each(|word| *word %= below);
    words
}

fn noise(tensor: u32) -> Noise {
    Noise { seed: 7, tensor, step: 0, offset: 0 }
}

/// The declared start, moved a little for norms and biases, so that no gradient is special.
fn initial(spec: &ParamSpec, stream: u32) -> Vec<f32> {
    let mut values = vec![0.0; spec.shape.numel()];
    philox::fill_normal(noise(stream), &mut values);
    for value in &mut values {
        *value = match spec.init {
            Init::Normal { std } => *value * std as f32,
            Init::Ones => 1.0 + 0.1 * *value,
            Init::Zeros => 0.1 * *value,
        };
    }
    values
}

pub fn rms(values: &[f64]) -> f64 {
    (values.iter().map(|x| x * x).sum::<f64>() / values.len() as f64).sqrt()
}

pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// A direction without pattern.
pub fn direction(len: usize, stream: u32, step: u32) -> Vec<f64> {
    let mut direction = vec![0.0_f32; len];
    philox::fill_normal(Noise { seed: 3, tensor: stream, step, offset: 0 }, &mut direction);
    direction.into_iter().map(f64::from).collect()
}

/// A model with random weights, no norm and no bias of which is special; parameters that are
/// drawn small are so here as well.
pub fn pretrained(
    model: onesigma_models::Model,
    p: Parametrisation,
) -> onesigma_models::Pretrained {
    let specs = model.parameters(p).expect("a possible model");
    let weights = specs
        .iter()
        .enumerate()
        .map(|(n, spec)| {
            let shape = spec.shape.dims().to_vec();
            let tensor = onesigma_models::Tensor { shape, values: initial(spec, n as u32) };
            (spec.name.clone(), tensor)
        })
        .collect();
    onesigma_models::Pretrained { model, parametrisation: p, weights }
}
