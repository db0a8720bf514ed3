//! A program that only writes text: parameters, and keys and values of what was read, as state.
//!
//! | entry | reads | writes |
//! | --- | --- | --- |
//! | `read_prompt` | `prompt`, `position`, parameters | `next_logits`, cache |
//! | `read_token` | `token`, `position`, `seen`, parameters, cache | `next_logits`, cache |
//!
//! Both give what `generate_step` of the training program gives for the same text. A parameter
//! whose every use is a product in one narrow format is kept in that format, so that it is rounded
//! when it is loaded and not for every token; the products see the same bits.

use onesigma_format::{Conversion, Format};
use onesigma_graph::passes::apply_recipe::apply_recipe;
use onesigma_graph::passes::clean::clean;
use onesigma_graph::passes::fuse_maps::fuse_maps;
use onesigma_graph::passes::legalise::{Rewrite, legalise};
use onesigma_graph::recipe::Recipe;
use onesigma_graph::{
    DType, EntryId, Graph, Module, Op, Program, Role, Shape, SlotId, SlotKind, ValueId,
};
use onesigma_models::{CacheStep, Cached};

use super::{Model, Parameter, Target, as_output};
use crate::{Error, Result};

/// A planned program with the names that a [`Generator`](crate::generator::Generator) uses.
#[derive(Clone, Debug)]
pub struct GenerationProgram {
    /// The program.
    pub program: Program,
    /// Its slots for the host.
    pub slots: WritingSlots,
    /// Parameters, and how values are rounded into their slots.
    pub parameters: Vec<(SlotId, Conversion)>,
    /// Reads a whole sequence and fills the cache.
    pub read_prompt: EntryId,
    /// Reads one token more.
    pub read_token: EntryId,
    /// Positions of the cache.
    pub seq: usize,
    /// Number of distinct tokens.
    pub vocabulary: usize,
    /// What was rewritten for the target.
    pub rewrites: Vec<Rewrite>,
}

/// Slots that the host writes and reads.
#[derive(Clone, Copy, Debug)]
pub struct WritingSlots {
    /// `U32 [2]`, input: for recipes that round stochastically.
    pub seed: SlotId,
    /// `U32 []`, input: always 0.
    pub step: SlotId,
    /// `U32 [1, seq]`, input: the text so far, padded at its end.
    pub prompt: SlotId,
    /// `U32 [1, 1]`, input: the token that is read.
    pub token: SlotId,
    /// `U32 [1]`, input: the position of the last token.
    pub position: SlotId,
    /// `U32 [1, seq]`, input: 1 up to that position, 0 behind it.
    pub seen: SlotId,
    /// `F32 [1, vocabulary]`, output: logits of the next token.
    pub next_logits: SlotId,
}

/// What the recipe makes of parameters and cache.
struct Formats {
    parameters: Vec<(DType, Conversion)>,
    caches: Vec<[(Shape, DType); 2]>,
}

/// Builds, rewrites and plans the program that writes text with `model` under `recipe`, for texts of
/// `seq` tokens.
///
/// # Errors
/// [`Error::Setting`] for a model that keeps no cache; as [`build`](super::build).
pub fn build_generation(
    model: &dyn Model,
    recipe: &Recipe,
    [seq, vocabulary]: [usize; 2],
    target: Target<'_>,
) -> Result<GenerationProgram> {
    let formats = formats(model, recipe, seq)?;
    let mut module = Module::new();
    let slots = slots(&mut module, seq, vocabulary)?;
    let mut parameters = Vec::new();
    for (Parameter { spec, .. }, (dtype, how)) in model.parameters()?.iter().zip(formats.parameters)
    {
        let (shape, role) = (spec.shape.clone(), Role::MasterWeight);
        parameters.push((module.slot(&spec.name, SlotKind::State, shape, dtype, role)?, how));
    }
    let mut caches = Vec::new();
    for (layer, [keys, values]) in formats.caches.into_iter().enumerate() {
        let mut slot = |name, (shape, dtype)| {
            let name = format!("cache.{layer}.{name}");
            module.slot(&name, SlotKind::State, shape, dtype, Role::Activation)
        };
        caches.push([slot("keys", keys)?, slot("values", values)?]);
    }
    let mut rewrites = Vec::new();
    let mut finish = |module: &mut Module, name: &str, mut graph: Graph, cached: Cached| {
        let next = as_output(&mut graph, cached.logits)?;
        graph.write(slots.next_logits, next);
        for (slot, value) in caches.iter().flatten().zip(cached.caches.into_iter().flatten()) {
            graph.write(*slot, value);
        }
        let graph = fuse_maps(&apply_recipe(&clean(&graph), recipe)?);
        let legal = legalise(&graph, target.supports, target.strict)?;
        rewrites.extend(legal.rewrites);
        Ok::<_, Error>(module.entry(name, legal.graph)?)
    };

    let mut graph = Graph::new();
    let [prompt, position] =
        [slots.prompt, slots.position].map(|slot| module.read(&mut graph, slot));
    let weights = read_all(&module, &mut graph, &parameters);
    let cached = model.read(&mut graph, &weights, prompt, position)?.ok_or_else(keeps_no_cache)?;
    let read_prompt = finish(&mut module, "read_prompt", graph, cached)?;

    let mut graph = Graph::new();
    let [token, position, seen] =
        [slots.token, slots.position, slots.seen].map(|slot| module.read(&mut graph, slot));
    let weights = read_all(&module, &mut graph, &parameters);
    let held: Vec<[ValueId; 2]> =
        caches.iter().map(|pair| pair.map(|slot| module.read(&mut graph, slot))).collect();
    let step = CacheStep { token, position, seen, caches: &held };
    let cached = model.step(&mut graph, &weights, step)?.ok_or_else(keeps_no_cache)?;
    let read_token = finish(&mut module, "read_token", graph, cached)?;

    let program = Program::new(module)?;
    Ok(GenerationProgram {
        program,
        slots,
        parameters,
        read_prompt,
        read_token,
        seq,
        vocabulary,
        rewrites,
    })
}

fn slots(module: &mut Module, seq: usize, vocabulary: usize) -> Result<WritingSlots> {
    let (seed, step) = (module.seed_slot()?, module.step_slot()?);
    let mut input =
        |name, shape: &[usize]| module.slot(name, SlotKind::Input, shape, DType::U32, Role::Data);
    Ok(WritingSlots {
        seed,
        step,
        prompt: input("prompt", &[1, seq])?,
        token: input("token", &[1, 1])?,
        position: input("position", &[1])?,
        seen: input("seen", &[1, seq])?,
        next_logits: {
            let shape = [1, vocabulary];
            module.slot("next_logits", SlotKind::Output, shape, DType::F32, Role::Statistic)?
        },
    })
}

fn read_all(module: &Module, graph: &mut Graph, slots: &[(SlotId, Conversion)]) -> Vec<ValueId> {
    slots.iter().map(|&(slot, _)| module.read(graph, slot)).collect()
}

fn keeps_no_cache() -> Error {
    Error::Setting {
        name: "model",
        given: "one that predicts no next token".into(),
        expected: "a decoder, model type gpt2".into(),
    }
}

/// Tries the recipe on a program whose parameters and cache are in F32, and looks at the formats in
/// which parameters are used and keys and values come.
fn formats(model: &dyn Model, recipe: &Recipe, seq: usize) -> Result<Formats> {
    let mut module = Module::new();
    let slots = slots(&mut module, seq, 1)?;
    let mut graph = Graph::new();
    let [prompt, position] =
        [slots.prompt, slots.position].map(|slot| module.read(&mut graph, slot));
    let mut parameters = Vec::new();
    for Parameter { spec, .. } in model.parameters()? {
        let format = recipe.state_format(Role::MasterWeight, &spec.name, spec.layer);
        let (shape, dtype) = (spec.shape, DType::Float(format));
        let slot = module.slot(&spec.name, SlotKind::State, shape, dtype, Role::MasterWeight)?;
        parameters.push((slot, Conversion::SATURATE));
    }
    let weights = read_all(&module, &mut graph, &parameters);
    let cached = model.read(&mut graph, &weights, prompt, position)?.ok_or_else(keeps_no_cache)?;
    graph.write(slots.next_logits, cached.logits);
    let mut caches = Vec::new();
    for (n, &value) in cached.caches.iter().flatten().enumerate() {
        let (shape, role) = (graph.shape(value).clone(), Role::Activation);
        caches.push(module.slot(&n.to_string(), SlotKind::State, shape, DType::F32, role)?);
        graph.write(caches[n], value);
    }
    let graph = apply_recipe(&clean(&graph), recipe)?;
    let parameters = parameters
        .iter()
        .map(|&(slot, how)| {
            let kept = (module.slot_info(slot).dtype, how);
            used_as(&graph, slot).unwrap_or(kept)
        })
        .collect();
    let of = |slot: SlotId| {
        let written = graph.writes().iter().find(|(other, _)| *other == slot);
        let dtype = written.map_or(DType::F32, |&(_, value)| graph.value(value).dtype);
        (module.slot_info(slot).shape.clone(), dtype)
    };
    let caches = caches.chunks_exact(2).map(|pair| [of(pair[0]), of(pair[1])]).collect();
    Ok(Formats { parameters, caches })
}

/// The format into which every use of a slot rounds it, if there is one and it draws no random
/// bits.
fn used_as(graph: &Graph, slot: SlotId) -> Option<(DType, Conversion)> {
    let own = graph.nodes().iter().find(|node| node.op == Op::Slot(slot))?.outputs[0];
    let mut found = None;
    for node in graph.nodes().iter().filter(|node| node.inputs.contains(&own)) {
        let result = graph.value(node.outputs[0]);
        let random = result.conversion.random_bits() > 0;
        let narrows =
            result.dtype.format().is_some_and(|format| format.bytes() < Format::F32.bytes());
        let use_ = (result.dtype, result.conversion);
        let is_cast = matches!(node.op, Op::Cast { .. }) && node.alpha == [1.0];
        if !is_cast || random || !narrows || found.is_some_and(|other| other != use_) {
            return None;
        }
        found = Some(use_);
    }
    found
}
