//! The training step as one graph, before it is made to fit a backend: what looks at tensors
//! (predicting, measuring) starts here.

use onesigma_graph::passes::apply_recipe::apply_recipe;
use onesigma_graph::passes::clean::clean;
use onesigma_graph::passes::legalise::Support;
use onesigma_graph::recipe::Recipe;
use onesigma_graph::{Graph, Module, SlotId};

use super::{Builder, HostSlots, Model, Settings, TRAIN_STREAMS, Target};
use crate::Result;

/// Forward pass, backward pass and update of one batch under a recipe, as a graph over the slots
/// of `module`.
#[derive(Clone, Debug)]
pub struct StepGraph {
    /// The slots; no entries yet.
    pub module: Module,
    /// The step, with the recipe's formats.
    pub step: Graph,
    /// What fills the state at the start.
    pub init: Graph,
    /// Slots for the host.
    pub slots: HostSlots,
    /// Slots of the further inputs, in the order of [`Model::more_inputs`].
    pub more_inputs: Vec<SlotId>,
}

/// Builds the step of `model` under `recipe`. Where steps accumulate several passes, it is the
/// step of one pass alone.
///
/// # Errors
/// As [`build`](super::build).
pub fn build_step(model: &dyn Model, recipe: &Recipe, settings: Settings) -> Result<StepGraph> {
    let settings = Settings { accumulate: 1, ..settings };
    let native = |_: &_, _: &[_], _| Support::Native;
    let target = Target { supports: &native, strict: false };
    let mut starting = Builder::new(model, recipe, settings, target)?;
    let init = starting.init()?;
    let init = starting.module.entries()[init.index()].graph.clone();

    let builder = Builder::new(model, recipe, settings, target)?;
    let mut graph = Graph::with_streams_from(TRAIN_STREAMS);
    let (loss, weights, gradients) = builder.backward(&mut graph)?;
    graph.write(builder.slots.loss, loss);
    builder.update(&mut graph, &weights, &gradients, 1.0)?;
    let step = apply_recipe(&clean(&graph), recipe)?;
    let Builder { module, slots, more_inputs, .. } = builder;
    Ok(StepGraph { module, step, init, slots, more_inputs })
}
