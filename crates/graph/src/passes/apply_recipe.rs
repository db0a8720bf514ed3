//! Gives every tensor the format that a recipe chooses for it.
//!
//! 0. An activation that the backward pass reads is a saved activation from here on.
//! 1. A tensor that an op stores gets the format of its role's `store` rule; statistics, data and
//!    slots keep theirs.
//! 2. A matrix operand whose `matmul` rule wants another format is cast. One cast serves all
//!    products that want the same, forward and backward.
//! 3. Where every use of a tensor wants the same format, its producer stores it in that format at
//!    once: one rounding instead of two, and no cast.
//!
//! Runs on the whole step, after autodiff and [`clean`](super::clean), so that the casts are seen
//! by no gradient: every rounding is straight-through.

use super::Renaming;
use super::memory_plan::root;
use super::saved::saved;
use crate::recipe::{Recipe, Use};
use crate::{DType, Error, Graph, Node, Op, Result, Role, ValueId};
use onesigma_format::Conversion;
use std::collections::HashMap;

/// A format with the way into it.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Want {
    dtype: DType,
    conversion: Conversion,
}

/// Rewrites a graph so that it follows a recipe.
///
/// # Errors
/// [`Error::NoRule`] if the recipe has no `store` rule for a role that occurs.
pub fn apply_recipe(graph: &Graph, recipe: &Recipe) -> Result<Graph> {
    let graph = &mark_saved(graph);
    let stores = stores(graph, recipe)?;
    let demands = Demands::collect(graph, recipe);
    let direct: Vec<Option<Want>> = (0..graph.values().len())
        .map(|index| demands.unanimous(graph, ValueId::new(index)))
        .collect();

    let mut result = graph.successor();
    let mut renamed = Renaming::new(graph);
    let mut casts: HashMap<(ValueId, DType), ValueId> = HashMap::new();
    for (at, node) in graph.nodes().iter().enumerate() {
        let outer = result.set_layer(node.layer);
        let mut inputs = renamed.all(&node.inputs);
        if let Op::MatMul { .. } = node.op {
            for (operand, input) in inputs.iter_mut().enumerate() {
                if let Some(want) = demands.of_operand(at, operand) {
                    *input = cast_behind_views(&mut result, *input, want, &mut casts)?;
                }
            }
        }
        if let Op::Concat { .. } = node.op {
            let first = result.value(inputs[0]);
            let want = Want { dtype: first.dtype, conversion: first.conversion };
            for input in &mut inputs {
                *input = cast_behind_views(&mut result, *input, want, &mut casts)?;
            }
        }
        let outputs = result.carry(node, graph, inputs.clone());
        for (&old, &new) in node.outputs.iter().zip(&outputs) {
            let value = &mut result.values[new.index()];
            if let Some(want) = direct[old.index()].or(stores[old.index()]) {
                value.dtype = want.dtype;
                value.conversion = want.conversion;
            }
            if node.op.is_movement() {
                let (dtype, conversion) = {
                    let operand = result.value(inputs[0]);
                    (operand.dtype, operand.conversion)
                };
                let value = &mut result.values[new.index()];
                value.dtype = dtype;
                value.conversion = conversion;
            }
        }
        renamed.set_all(&node.outputs, &outputs);
        result.set_layer(outer);
    }
    // A value in a narrow format that a slot wants in another is cast at the end.
    for &(slot, value) in graph.writes() {
        let old = graph.value(value);
        let want = Want { dtype: old.dtype, conversion: old.conversion };
        let new = renamed.get(value);
        let keep = graph.node(old.producer).op.is_movement() || old.role == Role::Statistic;
        let stored = stores[value.index()].is_some() && !is_slot_typed(graph, value);
        let new = if keep || !stored {
            new
        } else {
            cast_behind_views(&mut result, new, want, &mut casts)?
        };
        result.write(slot, new);
    }
    Ok(super::clean::clean(&result))
}

/// The graph with the role of every activation that the backward pass reads.
fn mark_saved(graph: &Graph) -> Graph {
    let mut is_saved = vec![false; graph.values().len()];
    for value in saved(graph) {
        is_saved[value.index()] = true;
    }
    let mut marked = graph.clone();
    for (index, value) in marked.values.iter_mut().enumerate() {
        if value.role == Role::Activation && is_saved[root(graph, ValueId::new(index)).index()] {
            value.role = Role::SavedActivation;
        }
    }
    marked
}

/// Parameters and moments: a recipe decides their slots' formats when the slots are declared.
fn is_slot_typed(graph: &Graph, value: ValueId) -> bool {
    matches!(graph.value(value).role, Role::MasterWeight | Role::FirstMoment | Role::SecondMoment)
}

/// What each value is stored as; `None` where the recipe has no say.
fn stores(graph: &Graph, recipe: &Recipe) -> Result<Vec<Option<Want>>> {
    let decide = |node: &Node, value: ValueId| -> Result<Option<Want>> {
        let info = graph.value(value);
        let fixed = node.op.is_movement()
            || matches!(node.op, Op::Slot(_) | Op::Cast { .. } | Op::AdamW(_))
            || matches!(info.role, Role::Statistic | Role::Data)
            || is_slot_typed(graph, value)
            || info.dtype != DType::F32;
        if fixed {
            return Ok(None);
        }
        let rule = recipe.rule(info.role, Use::Store, &node.name, node.layer).ok_or_else(|| {
            Error::NoRule {
                recipe: recipe.name.clone(),
                role: info.role.to_string(),
                node: node.name.clone(),
            }
        })?;
        Ok(Some(Want { dtype: DType::Float(rule.format), conversion: rule.conversion() }))
    };
    let mut stores = vec![None; graph.values().len()];
    for node in graph.nodes() {
        for &output in &node.outputs {
            stores[output.index()] = decide(node, output)?;
        }
    }
    Ok(stores)
}

/// The formats that matrix products want of their operands.
struct Demands {
    /// By node and operand.
    operands: HashMap<(usize, usize), Want>,
    /// By root value: what each use wants, `None` for a use that takes any format.
    uses: Vec<Vec<Option<Want>>>,
}

impl Demands {
    fn collect(graph: &Graph, recipe: &Recipe) -> Self {
        let mut demands =
            Self { operands: HashMap::new(), uses: vec![Vec::new(); graph.values().len()] };
        for (at, node) in graph.nodes().iter().enumerate() {
            if matches!(node.op, Op::Reshape { .. }) {
                continue; // its uses count, not itself
            }
            for (operand, &input) in node.inputs.iter().enumerate() {
                let want = match node.op {
                    Op::MatMul { .. } => Self::rule(graph, recipe, node, input),
                    _ => None,
                };
                if let Some(want) = want {
                    demands.operands.insert((at, operand), want);
                }
                demands.uses[root(graph, input).index()].push(want);
            }
        }
        for &(_, value) in graph.writes() {
            demands.uses[root(graph, value).index()].push(None);
        }
        demands
    }

    fn rule(graph: &Graph, recipe: &Recipe, node: &Node, input: ValueId) -> Option<Want> {
        let role = match graph.value(root(graph, input)).role {
            Role::MasterWeight => Role::Weight,
            Role::Data => Role::Activation,
            role => role,
        };
        recipe
            .rule(role, Use::Matmul, &node.name, node.layer)
            .map(|rule| Want { dtype: DType::Float(rule.format), conversion: rule.conversion() })
    }

    fn of_operand(&self, node: usize, operand: usize) -> Option<Want> {
        self.operands.get(&(node, operand)).copied()
    }

    /// The format that every use of a stored value wants, if there is one.
    fn unanimous(&self, graph: &Graph, value: ValueId) -> Option<Want> {
        let producer = graph.node(graph.value(value).producer);
        let info = graph.value(value);
        if matches!(producer.op, Op::Slot(_) | Op::Cast { .. })
            || producer.op.is_movement()
            || info.dtype != DType::F32
            || info.role == Role::Statistic
        {
            return None;
        }
        let (first, rest) = self.uses[value.index()].split_first()?;
        let first = (*first)?;
        rest.iter().all(|&other| other == Some(first)).then_some(first)
    }
}

/// Casts what a chain of reshapes looks at and repeats the chain on the result, so that all views
/// share one cast.
fn cast_behind_views(
    graph: &mut Graph,
    value: ValueId,
    want: Want,
    casts: &mut HashMap<(ValueId, DType), ValueId>,
) -> Result<ValueId> {
    if graph.value(value).dtype == want.dtype {
        return Ok(value);
    }
    let base = root(graph, value);
    let cast = match casts.get(&(base, want.dtype)) {
        Some(&cast) => cast,
        None => {
            let source = graph.node(graph.value(base).producer);
            let name = format!("cast({})", source.name);
            let role = match graph.value(base).role {
                Role::MasterWeight => Role::Weight,
                role => role,
            };
            let cast = graph
                .op(Op::Cast { to: want.dtype }, &[base])
                .stored_as(want.dtype, want.conversion)
                .named_fully(name)
                .role(role)
                .one()?;
            casts.insert((base, want.dtype), cast);
            cast
        }
    };
    let shape = graph.shape(value).clone();
    if *graph.shape(cast) == shape {
        return Ok(cast);
    }
    graph.op(Op::Reshape { shape }, &[cast]).named_fully(format!("view({base})")).one()
}
