//! A training step that can be looked into.

use onesigma_format::{Conversion, Format};
use onesigma_graph::passes::expose::{Exposed, expose};
use onesigma_graph::{DType, Graph, Module, Op, Role, Shape, SlotId, SlotKind, Value, ValueId};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::program::StepGraph;

/// The part of a step that makes a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pass {
    /// Parameters, as they are kept and as operands of products.
    Weights,
    /// Activations.
    Forward,
    /// Gradients of activations and of parameters.
    Backward,
    /// Moments of the optimiser and new weights.
    Update,
}

/// A tensor that can be looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct Tap {
    /// The tensor in [`Probe::graph`], before it is rounded into its format.
    pub value: ValueId,
    /// Name of the node that makes it: `layers.0.mlp.c_fc.linear`, `grad(..)` of it.
    pub name: String,
    /// Name of its op; `Slot` for a tensor of the state.
    pub op: &'static str,
    /// What it is for.
    pub role: Role,
    /// Layer that it belongs to.
    pub layer: Option<u32>,
    /// The part of the step that makes it.
    pub pass: Pass,
    /// Extents.
    pub shape: Shape,
    /// The format that it is stored in, by the recipe.
    pub format: Format,
    /// How it is rounded into it.
    pub conversion: Conversion,
    /// The state slot that holds it, for a tensor that exists before the step.
    pub slot: Option<SlotId>,
}

/// A training step in which every tensor can be seen before it is rounded.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The slots that the step reads and writes; no entries.
    pub module: Module,
    /// The step; results of narrow formats are split into an F32 result and a cast.
    pub graph: Graph,
    /// What fills the state at the start.
    pub init: Graph,
    /// Its tensors, in the order of the step. Copies (movement ops), statistics, which no recipe
    /// rounds, and inputs from the host are left out.
    pub taps: Vec<Tap>,
}

impl Probe {
    /// A probe of a step.
    ///
    /// # Errors
    /// [`Error::Graph`](crate::Error::Graph) for a step that was not built by this crate.
    pub fn new(step: &StepGraph) -> Result<Self> {
        let (graph, exposed) = expose(&step.step)?;
        let taps = exposed
            .iter()
            .enumerate()
            .filter_map(|(index, exposed)| {
                tap(&step.module, &step.step, ValueId::new(index), *exposed)
            })
            .collect();
        Ok(Self { module: step.module.clone(), graph, init: step.init.clone(), taps })
    }
}

fn tap(module: &Module, graph: &Graph, value: ValueId, exposed: Exposed) -> Option<Tap> {
    let Value { shape, role, producer, .. } = graph.value(value).clone();
    let node = graph.node(producer);
    let DType::Float(format) = exposed.dtype else { return None };
    let slot = match node.op {
        Op::Slot(slot) if module.slot_info(slot).kind == SlotKind::State => Some(slot),
        Op::Slot(_) => return None,
        _ => None,
    };
    if node.op.is_movement() || matches!(role, Role::Statistic | Role::Data) {
        return None;
    }
    let pass = match role {
        Role::Weight => Pass::Weights,
        Role::MasterWeight if slot.is_some() => Pass::Weights,
        Role::MasterWeight | Role::FirstMoment | Role::SecondMoment => Pass::Update,
        Role::ActivationGrad | Role::WeightGrad => Pass::Backward,
        _ => Pass::Forward,
    };
    Some(Tap {
        value: exposed.exact,
        name: graph.value_name(value),
        op: node.op.name(),
        role,
        layer: node.layer,
        pass,
        shape,
        format,
        conversion: exposed.conversion,
        slot,
    })
}
