//! How long does one training step of a small GPT take on the CPU backend, beside PyTorch?
//!
//! d_model 256, 4 layers, 4 heads of 64, sequence 256, batch 8, vocabulary 256, AdamW: 46 GFLOP.
//! The graph is built here from core and fused ops, with the formats of a recipe.
//!
//! ```text
//! cargo bench --bench step [-- [--profile] [--peer] [f32|bf16|fp16|fp8 ...]]
//! ```
//!
//! `--peer` runs `benches/peers/pytorch_gpt_step.py` with `$PYTHON` (default `python3`) right after
//! each recipe and prints the ratio. Threads: `ONESIGMA_THREADS`.
#![allow(clippy::print_stdout)]

use std::process::Command;
use std::time::Instant;

use onesigma_backend::profile::Profile;
use onesigma_backend::{Backend, Engine};
use onesigma_backend_cpu::CpuBackend;
use onesigma_format::{Format, Noise, philox};
use onesigma_graph::recipe::{Rule, Use};
use onesigma_graph::{
    AdamWConfig, DType, Graph, Module, Op, Program, Recipe, Result, Role, SlotId, SlotKind,
    ValueId, autodiff, passes,
};

const BATCH: usize = 8;
const SEQ: usize = 256;
const WIDTH: usize = 256;
const HEADS: usize = 4;
const LAYERS: u32 = 4;
const VOCAB: usize = 256;
const STEPS: usize = 15;

/// The recipe called `name`: formats of stored tensors and of matrix operands.
fn recipe(name: &str) -> Option<Recipe> {
    Some(match name {
        "f32" => Recipe::uniform(name, Format::F32),
        "bf16" => Recipe::uniform(name, Format::BF16),
        "fp16" => Recipe::uniform(name, Format::F16),
        "fp8" => {
            let mut recipe = Recipe::uniform(name, Format::F16);
            let narrow = [
                (Role::Weight, Format::E4M3),
                (Role::Activation, Format::E4M3),
                (Role::ActivationGrad, Format::E5M2),
            ];
            for (role, format) in narrow {
                recipe.rules.insert(0, Rule::new(role, Use::Matmul, format));
            }
            recipe
        }
        _ => return None,
    })
}

/// A parameter's slots: weight, first and second moment.
struct Parameter {
    slots: [SlotId; 3],
    value: ValueId,
}

struct Builder {
    module: Module,
    graph: Graph,
    parameters: Vec<Parameter>,
}

impl Builder {
    fn parameter(&mut self, name: &str, shape: &[usize]) -> Result<ValueId> {
        let roles = [Role::MasterWeight, Role::FirstMoment, Role::SecondMoment];
        let mut slots = Vec::new();
        for (suffix, role) in ["", ".m", ".v"].iter().zip(roles) {
            let name = format!("{name}{suffix}");
            slots.push(self.module.slot(&name, SlotKind::State, shape, DType::F32, role)?);
        }
        let slots = [slots[0], slots[1], slots[2]];
        let value = self.module.read(&mut self.graph, slots[0]);
        self.parameters.push(Parameter { slots, value });
        Ok(value)
    }

    /// `x [.., fan_in]` times a weight `[fan_out, fan_in]`, unit scaled.
    fn linear(&mut self, name: &str, x: ValueId, fan_in: usize, fan_out: usize) -> Result<ValueId> {
        let weight = self.parameter(name, &[fan_out, fan_in])?;
        let (scale, batch) = ((fan_in as f64).powf(-0.5), (BATCH * SEQ) as f64);
        let op = Op::MatMul { transpose_left: false, transpose_right: true };
        let node = self.graph.op(op, &[x, weight]).named(name);
        node.alpha(scale).beta(&[scale, batch.powf(-0.5)]).one()
    }

    fn norm(&mut self, name: &str, x: ValueId) -> Result<ValueId> {
        let weight = self.parameter(&format!("{name}.weight"), &[WIDTH])?;
        let bias = self.parameter(&format!("{name}.bias"), &[WIDTH])?;
        self.graph.op(Op::LayerNorm { eps: 1e-5 }, &[x, weight, bias]).named(name).one()
    }

    fn attention(&mut self, layer: u32, x: ValueId) -> Result<ValueId> {
        let qkv = self.linear(&format!("qkv{layer}"), x, WIDTH, 3 * WIDTH)?;
        let mut heads = Vec::new();
        for part in 0..3 {
            let slice = Op::Slice { axis: 2, start: part * WIDTH, len: WIDTH };
            let part = self.graph.op(slice, &[qkv]).one()?;
            heads.push(self.graph.reshape(part, [BATCH, SEQ, HEADS, WIDTH / HEADS])?);
        }
        let attention = Op::Attention { causal: true, logit_scale: 1.0 / 64.0 };
        let mixed = self.graph.op(attention, &heads).all()?[0];
        let mixed = self.graph.reshape(mixed, [BATCH, SEQ, WIDTH])?;
        self.linear(&format!("projection{layer}"), mixed, WIDTH, WIDTH)
    }

    fn mlp(&mut self, layer: u32, x: ValueId) -> Result<ValueId> {
        let up = self.linear(&format!("up{layer}"), x, WIDTH, 4 * WIDTH)?;
        let gelu = self
            .graph
            .map(&[up], |x| x[0].clone() * ((x[0].clone() * 0.5_f64.sqrt()).erf() + 1.0) * 0.5)?;
        let hidden = gelu.alpha(1.7).beta(&[1.7]).named("gelu").one()?;
        self.linear(&format!("down{layer}"), hidden, 4 * WIDTH, WIDTH)
    }

    fn add(&mut self, x: ValueId, branch: ValueId) -> Result<ValueId> {
        let scale = 0.5_f64.sqrt();
        let sum = self.graph.map(&[x, branch], |x| x[0].clone() + x[1].clone())?;
        sum.alpha(scale).beta(&[scale, scale]).named("residual").one()
    }
}

fn program(recipe: &Recipe) -> Result<Program> {
    let mut b = Builder { module: Module::new(), graph: Graph::new(), parameters: Vec::new() };
    let data = |module: &mut Module, name: &str| {
        module.slot(name, SlotKind::Input, [BATCH, SEQ], DType::U32, Role::Data)
    };
    let (ids, targets) = (data(&mut b.module, "ids")?, data(&mut b.module, "targets")?);
    let lr = b.module.slot("lr", SlotKind::Input, [], DType::F32, Role::Statistic)?;
    let step = b.module.step_slot()?;
    let loss_slot = b.module.slot("loss", SlotKind::Output, [], DType::F32, Role::Statistic)?;
    let [ids, targets, lr, step] =
        [ids, targets, lr, step].map(|slot| b.module.read(&mut b.graph, slot));

    let tokens = b.parameter("tokens", &[VOCAB, WIDTH])?;
    let positions = b.parameter("positions", &[SEQ, WIDTH])?;
    let tokens = b.graph.op(Op::Gather, &[tokens, ids]).one()?;
    let mut x = b.add(tokens, positions)?;
    for layer in 0..LAYERS {
        let h = b.norm(&format!("attention_norm{layer}"), x)?;
        let h = b.attention(layer, h)?;
        x = b.add(x, h)?;
        let h = b.norm(&format!("mlp_norm{layer}"), x)?;
        let h = b.mlp(layer, h)?;
        x = b.add(x, h)?;
    }
    let x = b.norm("norm", x)?;
    let logits = b.linear("head", x, WIDTH, VOCAB)?;
    let Builder { mut module, mut graph, parameters } = b;
    let entropy = Op::CrossEntropy { mult: 1.0, mean: true };
    let loss = graph.op(entropy, &[logits, targets]).beta(&[(BATCH * SEQ) as f64, 1.0]).one()?;
    let values: Vec<ValueId> = parameters.iter().map(|parameter| parameter.value).collect();
    let gradients = autodiff::gradients(&mut graph, loss, &values, None)?;
    let one = graph.op(
        Op::Map { expr: onesigma_graph::expr::Expr::new(0, |_| 1.0.into()), shape: [].into() },
        &[],
    );
    let one = one.role(Role::Statistic).one()?;
    let adam = AdamWConfig { beta1: 0.9, beta2: 0.95, eps: 1e-8, decay: 0.01, lr_scale: 1.0 };
    for (parameter, gradient) in parameters.iter().zip(gradients) {
        let [_, m, v] = parameter.slots.map(|slot| module.read(&mut graph, slot));
        let inputs = [parameter.value, gradient, m, v, lr, step, one];
        let results = graph.op(Op::AdamW(adam), &inputs).all()?;
        for (slot, result) in parameter.slots.iter().zip(results) {
            graph.write(*slot, result);
        }
    }
    graph.write(loss_slot, loss);
    let graph = passes::apply_recipe::apply_recipe(&passes::clean::clean(&graph), recipe)?;
    module.entry("train_step", graph)?;
    Program::new(module)
}

fn le<T, const N: usize>(values: &[T], bytes: impl Fn(&T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(bytes).collect()
}

fn prepare(program: &Program, engine: &mut dyn Engine) -> onesigma_backend::Result<()> {
    for (at, slot) in program.slots().iter().enumerate() {
        if slot.kind == SlotKind::State && slot.role == Role::MasterWeight {
            let mut values = vec![1.0; slot.shape.numel()];
            if slot.name.ends_with(".bias") {
                values.fill(0.0);
            } else if !slot.name.ends_with(".weight") {
                philox::fill_normal(Noise { seed: at as u64, ..Noise::default() }, &mut values);
            }
            engine.write(SlotId::new(at), &le(&values, |x| x.to_le_bytes()))?;
        }
    }
    let ids: Vec<u32> = (0..BATCH * SEQ + 1).map(|i| (i * i % 251) as u32).collect();
    let write = |engine: &mut dyn Engine, name, bytes: &[u8]| {
        program.find_slot(name).map_err(Into::into).and_then(|slot| engine.write(slot, bytes))
    };
    write(engine, "ids", &le(&ids[..ids.len() - 1], |x| x.to_le_bytes()))?;
    write(engine, "targets", &le(&ids[1..], |x| x.to_le_bytes()))?;
    write(engine, "lr", &1e-3_f32.to_le_bytes())?;
    write(engine, "step", &0_u32.to_le_bytes())
}

/// Median step time in milliseconds of the peer, from its JSON line.
fn peer() -> Option<f64> {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/pytorch_gpt_step.py");
    let threads = rayon::current_num_threads().to_string();
    let output = Command::new(python).args([script, "--threads", &threads]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let rest = text.split_once("\"step_ms_median\": ").map(|(_, rest)| rest);
    let value = rest.and_then(|rest| rest.split([',', '}']).next()?.parse().ok());
    if value.is_none() {
        println!("peer: {}", text.trim());
    }
    value
}

fn measure(name: &str, profile: bool, compare: bool) -> onesigma_backend::Result<()> {
    let Some(recipe) = recipe(name) else {
        println!("no recipe `{name}`; there are f32, bf16, fp16, fp8");
        return Ok(());
    };
    let program = program(&recipe)?;
    let backend = CpuBackend::new();
    let mut engine = backend.compile(&program)?;
    prepare(&program, &mut *engine)?;
    let entry = program.find_entry("train_step")?;
    let mut times = Vec::new();
    for step in 0..STEPS + 4 {
        if profile && step == 4 {
            engine.record();
        }
        let start = Instant::now();
        engine.run(entry, 1)?;
        if step >= 4 {
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    times.sort_by(f64::total_cmp);
    let mut loss = [0; 4];
    engine.read(program.find_slot("loss")?, &mut loss)?;
    let median = times[times.len() / 2];
    println!(
        "{name:<6} {median:8.1} ms median {:8.1} ms least, loss {:.4}, arena {} MiB, {}",
        times[0],
        f32::from_le_bytes(loss),
        program.arena_bytes() >> 20,
        backend.caps().device,
    );
    if profile {
        let (spans, limits) = (engine.take_spans(), backend.limits());
        println!("{}", Profile::new(&program, &spans, limits.as_ref())?.table());
    }
    if compare && let Some(peer) = peer() {
        println!("       {peer:8.1} ms PyTorch f32 eager: ratio {:.2}", median / peer);
    }
    Ok(())
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let flag = |name: &str| args.iter().any(|arg| arg == name);
    let mut names: Vec<&str> =
        args.iter().map(String::as_str).filter(|arg| !arg.starts_with("--")).collect();
    if names.is_empty() {
        names = vec!["f32", "bf16", "fp8"];
    }
    for name in names {
        if let Err(error) = measure(name, flag("--profile"), flag("--peer")) {
            println!("{name}: {error}");
        }
    }
}
