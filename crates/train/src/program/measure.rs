//! Counts, for every gradient tensor of a step, the elements that its format flushes to zero.
//!
//! The entry `measure_step` runs the same forward and backward pass without the recipe, in f32.
//! An element is flushed if it is not zero and the format that the recipe gives its tensor, in
//! memory or as an operand of a matrix product, whichever is coarser at zero, rounds it to zero:
//! rounding to nearest even does so up to half the smallest subnormal, the tie included.

use onesigma_format::Format;
use onesigma_graph::expr::Term;
use onesigma_graph::passes::clean::clean;
use onesigma_graph::recipe::{Recipe, Use};
use onesigma_graph::{
    DType, EntryId, Graph, Op, Program, ReduceKind, Role, SlotId, SlotKind, ValueId,
};

use super::{Builder, HostSlots, Model, Settings, TRAIN_STREAMS, Target};
use crate::Result;

/// One tensor that `measure_step` counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// Name of the node that makes it.
    pub name: String,
    /// Its role: an activation's or a weight's gradient.
    pub role: Role,
    /// The format that decides.
    pub format: Format,
    /// Number of elements.
    pub elements: usize,
}

/// A program whose one entry looks at the gradients of a step and changes nothing.
#[derive(Clone, Debug)]
pub struct MeasuringProgram {
    /// The program; its state slots have the names of the training program's.
    pub program: Program,
    /// Its slots for the host: `tokens`, `targets`, `seed` and `step` are read.
    pub slots: HostSlots,
    /// Slots of the model's further inputs.
    pub more_inputs: Vec<SlotId>,
    /// The entry.
    pub entry: EntryId,
    /// Tensors that it counts, in order.
    pub measured: Vec<Measured>,
    /// Output `F32 [measured]`: elements that the format flushes to zero.
    pub flushed: SlotId,
    /// Output `F32 [measured]`: elements that are finite and not zero.
    pub nonzero: SlotId,
}

/// Builds the program that measures the gradients of `model` under `recipe`.
///
/// # Errors
/// As [`build`](super::build).
pub fn build_measuring(
    model: &dyn Model,
    recipe: &Recipe,
    settings: Settings,
    target: Target<'_>,
) -> Result<MeasuringProgram> {
    let mut builder = Builder::new(model, recipe, settings, target)?;
    let (entry, measured, [flushed, nonzero]) = builder.measure_step()?;
    let program = Program::new(builder.module)?;
    let (slots, more_inputs) = (builder.slots, builder.more_inputs);
    Ok(MeasuringProgram { program, slots, more_inputs, entry, measured, flushed, nonzero })
}

impl Builder<'_> {
    /// Adds the entry; gives it with what it counts and the slots of the counts.
    fn measure_step(&mut self) -> Result<(EntryId, Vec<Measured>, [SlotId; 2])> {
        let mut graph = Graph::with_streams_from(TRAIN_STREAMS);
        let (_, _, gradients) = self.backward(&mut graph)?;
        let mut measured = Vec::new();
        let mut counts = Vec::new();
        for index in 0..graph.values().len() {
            let value = ValueId::new(index);
            let Some(tensor) = self.measured(&graph, value, gradients.contains(&value)) else {
                continue;
            };
            let limit = tensor.format.min_subnormal() / 2.0;
            let axes: Vec<isize> = (0..graph.shape(value).rank() as isize).collect();
            let mut count = |limit: f64| -> Result<ValueId> {
                let count = graph
                    .reduce(ReduceKind::Sum, &[value], &axes, false, |x| {
                        let size = x[0].abs();
                        let not_zero = Term::constant(0.0).less(size.clone());
                        not_zero * size.less_equal(limit)
                    })?
                    .named("count")
                    .role(Role::Statistic)
                    .one()?;
                Ok(graph.reshape(count, [1])?)
            };
            counts.push((count(limit)?, count(f64::from(f32::MAX))?));
            measured.push(tensor);
        }
        let (flushed, nonzero): (Vec<ValueId>, Vec<ValueId>) = counts.into_iter().unzip();
        let mut slots = Vec::new();
        for (name, counts) in [("flushed", flushed), ("nonzero", nonzero)] {
            let shape = [counts.len()];
            let slot =
                self.module.slot(name, SlotKind::Output, shape, DType::F32, Role::Statistic)?;
            let all = match counts[..] {
                [one] => one,
                _ => graph.op(Op::Concat { axis: 0 }, &counts).role(Role::Statistic).one()?,
            };
            graph.write(slot, all);
            slots.push(slot);
        }
        let graph = self.legal(&clean(&graph))?;
        let entry = self.module.entry("measure_step", graph)?;
        Ok((entry, measured, [slots[0], slots[1]]))
    }

    /// What to count of a value; none for values that are no gradients or are only moved.
    fn measured(&self, graph: &Graph, value: ValueId, is_parameter: bool) -> Option<Measured> {
        let info = graph.value(value);
        let node = graph.node(info.producer);
        let is_gradient =
            is_parameter || matches!(info.role, Role::ActivationGrad | Role::WeightGrad);
        if !is_gradient || node.op.is_movement() || info.dtype != DType::F32 {
            return None;
        }
        let format = [Use::Store, Use::Matmul]
            .into_iter()
            .filter(|&usage| usage == Use::Store || self.is_multiplied(graph, value))
            .filter_map(|usage| self.recipe.rule(info.role, usage, &node.name, node.layer))
            .map(|rule| rule.format)
            .max_by(|a, b| a.min_subnormal().total_cmp(&b.min_subnormal()))?;
        let elements = info.shape.numel();
        Some(Measured { name: graph.value_name(value), role: info.role, format, elements })
    }

    /// Whether a matrix product reads the value, directly or through a reshape.
    fn is_multiplied(&self, graph: &Graph, value: ValueId) -> bool {
        graph.nodes().iter().any(|node| {
            let reads = node.inputs.contains(&value);
            match node.op {
                Op::MatMul { .. } => reads,
                Op::Reshape { .. } | Op::Permute { .. } => {
                    reads && self.is_multiplied(graph, node.outputs[0])
                }
                _ => false,
            }
        })
    }
}
