//! The program: a GPT, its start, a step of AdamW, and the next letter of a text.

use onesigma_backend::Backend;
use onesigma_graph::expr::Expr;
use onesigma_graph::passes::apply_recipe::apply_recipe;
use onesigma_graph::passes::clean::clean;
use onesigma_graph::passes::fuse_maps::fuse_maps;
use onesigma_graph::passes::legalise::legalise;
use onesigma_graph::{
    AdamWConfig, DType, EntryId, Graph, Module, Op, Program, Role, Shape, SlotId, SlotKind,
    ValueId, autodiff,
};
use onesigma_models::config::Norm;
use onesigma_models::{GptConfig, Params, gpt_loss, gpt_next};
use onesigma_ops::recipes;

use crate::Error;
use crate::text::VOCABULARY;

pub(crate) const BATCH: usize = 16;
pub(crate) const SEQ: usize = 64;
const MOMENTS: [(&str, Role); 2] = [(".m", Role::FirstMoment), (".v", Role::SecondMoment)];

/// A program with its slots for the host.
pub(crate) struct Built {
    pub program: Program,
    pub lr: SlotId,
    pub tokens: SlotId,
    pub targets: SlotId,
    pub loss: SlotId,
    pub prompt: SlotId,
    pub last: SlotId,
    pub logits: SlotId,
    pub init: EntryId,
    pub train: EntryId,
    pub next: EntryId,
}

fn config() -> GptConfig {
    GptConfig {
        vocab_size: VOCABULARY,
        n_positions: SEQ,
        n_embd: 64,
        n_layer: 2,
        n_head: 2,
        norm: Norm::RmsNorm,
        norm_affine: false,
        bias: false,
        tie_word_embeddings: Some(false),
        residual_mult: 0.25,
        ..GptConfig::default()
    }
}

/// A scalar constant.
fn constant(graph: &mut Graph, shape: Shape, value: f64) -> onesigma_graph::Result<ValueId> {
    let expr = Expr::new(0, |_| value.into());
    graph.op(Op::Map { expr, shape }, &[]).role(Role::Statistic).one()
}

/// Builds the program of a recipe for a backend.
pub(crate) fn build(backend: &dyn Backend, recipe: &str) -> Result<Built, Error> {
    let recipe = recipes::load(recipe)?;
    let p = recipes::parametrisation(&recipe);
    let config = config();
    let supports = |op: &_, inputs: &[_], output| backend.supports(op, inputs, output);
    let legal = |graph: &Graph| -> Result<Graph, Error> {
        let graph = fuse_maps(&apply_recipe(&clean(graph), &recipe)?);
        Ok(legalise(&graph, &supports, false)?.graph)
    };

    let mut module = Module::new();
    module.seed_slot()?;
    let step = module.step_slot()?;
    let (input, output) = (SlotKind::Input, SlotKind::Output);
    let mut slot = |name: &str, kind, shape: &[usize], dtype, role| {
        module.slot(name, kind, shape.to_vec(), dtype, role)
    };
    let lr = slot("lr", input, &[], DType::F32, Role::Statistic)?;
    let tokens = slot("tokens", input, &[BATCH, SEQ], DType::U32, Role::Data)?;
    let targets = slot("targets", input, &[BATCH, SEQ], DType::U32, Role::Data)?;
    let loss = slot("loss", output, &[], DType::F32, Role::Statistic)?;
    let prompt = slot("prompt", input, &[1, SEQ], DType::U32, Role::Data)?;
    let last = slot("last", input, &[1], DType::U32, Role::Data)?;
    let logits = slot("logits", output, &[1, VOCABULARY], DType::F32, Role::Statistic)?;

    let specs = config.parameters(p)?;
    let mut states = Vec::new();
    for spec in &specs {
        let mut state = |suffix: &str, role: Role| {
            let dtype = DType::Float(recipe.state_format(role, &spec.name, spec.layer));
            let name = format!("{}{suffix}", spec.name);
            module.slot(&name, SlotKind::State, spec.shape.clone(), dtype, role)
        };
        let weight = state("", Role::MasterWeight)?;
        states.push([
            weight,
            state(MOMENTS[0].0, MOMENTS[0].1)?,
            state(MOMENTS[1].0, MOMENTS[1].1)?,
        ]);
    }
    let parameters = |values: &[ValueId]| {
        let names = specs.iter().map(|spec| spec.name.clone());
        Params::new(names.zip(values.iter().copied()))
    };

    let mut graph = Graph::new();
    for (spec, [weight, moments @ ..]) in specs.iter().zip(&states) {
        let start = spec.initial(&mut graph, module.slot_info(*weight).dtype)?;
        graph.write(*weight, start);
        for &moment in moments {
            let (shape, dtype) = (spec.shape.clone(), module.slot_info(moment).dtype);
            let zero = constant(&mut graph, shape, 0.0)?;
            let zero = match dtype == DType::F32 {
                true => zero,
                false => graph.op(Op::Cast { to: dtype }, &[zero]).one()?,
            };
            graph.write(moment, zero);
        }
    }
    let graph = legalise(&clean(&graph), &supports, false)?.graph;
    let init = module.entry("init", graph)?;

    let mut graph = Graph::new();
    let [step, rate, own_tokens, own_targets] =
        [step, lr, tokens, targets].map(|slot| module.read(&mut graph, slot));
    let reads: Vec<[ValueId; 3]> =
        states.iter().map(|own| own.map(|slot| module.read(&mut graph, slot))).collect();
    let weights: Vec<ValueId> = reads.iter().map(|own| own[0]).collect();
    let mut params = parameters(&weights);
    let found = gpt_loss(&mut graph, &mut params, &config, p, own_tokens, own_targets, true)?;
    let gradients = autodiff::gradients(&mut graph, found.loss, &weights, None)?;
    let factor = constant(&mut graph, Shape::scalar(), 1.0)?;
    let scheme = p.scheme();
    for (n, gradient) in gradients.into_iter().enumerate() {
        let (spec, [w, m, v]) = (&specs[n], reads[n]);
        let depth = spec.layer.map(|_| config.n_layer);
        let lr_scale = scheme.learning_rate.factor(spec.kind, spec.shape.dims(), depth);
        let update = AdamWConfig { beta1: 0.9, beta2: 0.99, eps: 1e-8, decay: 0.0, lr_scale };
        let new = graph.op(Op::AdamW(update), &[w, gradient, m, v, rate, step, factor]).all()?;
        for (&slot, value) in states[n].iter().zip(new) {
            graph.write(slot, value);
        }
    }
    graph.write(loss, found.loss);
    let train = module.entry("train", legal(&graph)?)?;

    let mut graph = Graph::new();
    let [own_prompt, own_last] = [prompt, last].map(|slot| module.read(&mut graph, slot));
    let weights: Vec<ValueId> = states.iter().map(|own| module.read(&mut graph, own[0])).collect();
    let mut params = parameters(&weights);
    let next = gpt_next(&mut graph, &mut params, &config, p, own_prompt, own_last)?;
    let next = match graph.value(next).dtype == DType::F32 {
        true => next,
        false => graph.op(Op::Cast { to: DType::F32 }, &[next]).one()?,
    };
    graph.write(logits, next);
    let next = module.entry("next", legal(&graph)?)?;

    let program = Program::new(module)?;
    Ok(Built { program, lr, tokens, targets, loss, prompt, last, logits, init, train, next })
}
