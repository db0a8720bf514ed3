//! Which edge breaks the cut-edge rule, and what would mend it.
//!
//! At a conflict the ways from one value to the loss carry different constants. An op on one of
//! them whose `alpha` and `beta` differ is to blame if the ways agree once it has
//! `alpha = beta`, as a constraint makes it. Where no single op is, either the ops with constraints
//! are to blame together (then the one that helps most is named, and the next after it is mended),
//! or the fault lies in the weights of a sum or the scales of a parameter's own edges: then an edge
//! at the conflict is named with the backward scale that would make the ways agree.

use super::sums::is_weighted_sum;
use super::{Conflict, Flow, TOLERANCE, close};
use crate::{Constraint, Result};
use onesigma_graph::{Graph, NodeId, Op, ValueId};
use std::fmt;

/// An edge of a graph: a value and the op that reads it.
#[derive(Clone, PartialEq, Debug)]
pub struct Edge {
    /// Name of the value.
    pub from: String,
    /// The op that reads it.
    pub node: NodeId,
    /// Name of that op: the path of scopes and layers.
    pub name: String,
    /// What it computes.
    pub op: &'static str,
    /// Which of its operands the value is.
    pub operand: usize,
    /// The layer that it belongs to.
    pub layer: Option<u32>,
    /// Forward scale of the op.
    pub alpha: f64,
    /// Backward scale of the operand.
    pub beta: f64,
}

impl fmt::Display for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, name, op, operand, alpha, beta, .. } = self;
        write!(f, "`{from}` -> `{name}` ({op}, operand {operand}")?;
        if let Some(layer) = self.layer {
            write!(f, ", layer {layer}")?;
        }
        write!(f, ", alpha {alpha:.6}, beta {beta:.6})")
    }
}

/// What would mend a [`Violation`].
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Mend {
    /// A constraint over the op's output and those operands that lie on the ways in question. Any
    /// constraint but `none` does; this one leaves the forward pass as it is.
    Constraint(Constraint),
    /// This backward scale of the edge.
    Beta(f64),
}

impl fmt::Display for Mend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Constraint(constraint) => write!(f, "the constraint `{constraint}`"),
            Self::Beta(beta) => write!(f, "the backward scale {beta:.6}"),
        }
    }
}

/// A break of the cut-edge rule.
#[derive(Clone, PartialEq, Debug)]
pub struct Violation {
    /// Name of the value at which ways with different constants meet in the backward pass.
    pub value: String,
    /// The constants that its uses carry, with the names of the ops that use it.
    pub constants: Vec<(String, f64)>,
    /// The edge that is to blame.
    pub edge: Edge,
    /// What would mend it.
    pub mend: Mend,
    /// Operands of the edge's op that the mending constrains.
    operands: Vec<usize>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cut-edge rule: the gradient of `{}` is ", self.value)?;
        for (n, (name, constant)) in self.constants.iter().enumerate() {
            let comma = if n == 0 { "" } else { " but " };
            write!(f, "{comma}{constant:.6} times the true one by `{name}`")?;
        }
        write!(
            f,
            "; the edge {} is no cut edge, and its scales differ; {} on it would mend that",
            self.edge, self.mend
        )
    }
}

impl std::error::Error for Violation {}

impl Violation {
    /// The graph with the mending applied. Where several edges are to blame, the next verification
    /// names the next one.
    ///
    /// # Errors
    /// Those of [`constrain`](Self::constrain).
    pub fn mend(&self, graph: &Graph) -> Result<Graph> {
        let Mend::Beta(beta) = self.mend else {
            return self.constrain(graph, Constraint::ToOutputScale);
        };
        let mut mended = graph.clone();
        let node = graph.node(self.edge.node);
        let mut scales = node.beta.clone();
        scales[self.edge.operand] = beta;
        mended.set_scales(self.edge.node, &node.alpha, &scales)?;
        Ok(mended)
    }

    /// The graph with another constraint over the op of the edge than [`Mend::Constraint`] names,
    /// such as a mean; it may change the forward pass.
    ///
    /// # Errors
    /// As [`Constraint::common`].
    pub fn constrain(&self, graph: &Graph, constraint: Constraint) -> Result<Graph> {
        let node = graph.node(self.edge.node);
        let mut group = vec![node.alpha[0]];
        group.extend(self.operands.iter().map(|&operand| node.beta[operand]));
        let (mut alpha, mut beta) = (node.alpha.clone(), node.beta.clone());
        if let Some(common) = constraint.common(node.op.name(), &group)? {
            alpha[0] = common;
            self.operands.iter().for_each(|&operand| beta[operand] = common);
        }
        let mut mended = graph.clone();
        mended.set_scales(self.edge.node, &alpha, &beta)?;
        Ok(mended)
    }
}

/// Finds the edge to blame for a conflict.
pub(crate) fn locate(flow: &Flow<'_>, conflict: &Conflict) -> Violation {
    let is_parameter =
        matches!(flow.graph.node(flow.graph.value(conflict.value).producer).op, Op::Slot(_));
    if is_parameter {
        // Its own edges are free, so they are to blame whatever lies between.
        return at_conflict(flow, conflict, |_| true);
    }
    let suspects = suspects(flow, conflict.value);
    if let Some(suspect) =
        suspects.iter().find(|suspect| flow.mismatch(conflict, &[suspect]) == 0.0)
    {
        return constrained(flow, conflict, suspect);
    }
    let bounded: Vec<&Suspect> =
        suspects.iter().filter(|suspect| !is_weighted_sum(flow.graph.node(suspect.node))).collect();
    if flow.mismatch(conflict, &bounded) == 0.0 {
        let mut best: Option<(&Suspect, f64)> = None;
        for &suspect in &bounded {
            let left = flow.mismatch(conflict, &[suspect]);
            if best.is_none_or(|(_, least)| left < least) {
                best = Some((suspect, left));
            }
        }
        if let Some((suspect, _)) = best {
            return constrained(flow, conflict, suspect);
        }
    }
    at_conflict(flow, conflict, |node| is_weighted_sum(flow.graph.node(node)))
}

/// An op whose scales differ on edges that depend on a value.
struct Suspect {
    node: NodeId,
    operands: Vec<usize>,
}

/// All of them between a value and the loss, in execution order.
fn suspects(flow: &Flow<'_>, value: ValueId) -> Vec<Suspect> {
    let depends = flow.descendants(value);
    let mut suspects = Vec::new();
    for id in (0..flow.receives.len()).map(NodeId::new) {
        let inputs = &flow.graph.node(id).inputs;
        let operands: Vec<usize> =
            flow.operands(id).filter(|&operand| depends[inputs[operand].index()]).collect();
        if operands.iter().any(|&operand| !close(flow.ratio(id, operand), 1.0)) {
            suspects.push(Suspect { node: id, operands });
        }
    }
    suspects
}

impl Flow<'_> {
    /// How far the constants at a conflict lie apart if some ops had `alpha = beta`; 0 if they
    /// agree, infinite if that makes a conflict nearer to the loss.
    fn mismatch(&self, conflict: &Conflict, mended: &[&Suspect]) -> f64 {
        let ratio = |node: NodeId, operand: usize| {
            let here =
                |suspect: &&Suspect| suspect.node == node && suspect.operands.contains(&operand);
            if mended.iter().any(here) { 1.0 } else { self.ratio(node, operand) }
        };
        match self.constants(&ratio) {
            Ok(_) => 0.0,
            Err(found) if found.value == conflict.value => found.spread().max(TOLERANCE),
            // Values are numbered in execution order: a smaller number lies farther from the loss.
            Err(found) if found.value < conflict.value => 0.0,
            Err(_) => f64::INFINITY,
        }
    }
}

fn constrained(flow: &Flow<'_>, conflict: &Conflict, suspect: &Suspect) -> Violation {
    let differs = |&&operand: &&usize| !close(flow.ratio(suspect.node, operand), 1.0);
    let operand = suspect.operands.iter().find(differs).copied().unwrap_or(0);
    violation(
        flow,
        conflict,
        edge(flow, suspect.node, operand),
        Mend::Constraint(Constraint::ToOutputScale),
        suspect.operands.clone(),
    )
}

/// Blames an edge at the conflict itself, preferably one whose op is `preferred`: the first that
/// does not carry the constant of most.
fn at_conflict(
    flow: &Flow<'_>,
    conflict: &Conflict,
    preferred: impl Fn(NodeId) -> bool,
) -> Violation {
    let common = conflict.majority();
    let mut odd: Vec<_> = conflict.uses.iter().filter(|own| !close(own.constant, common)).collect();
    odd.sort_by_key(|own| !preferred(own.node));
    let own = odd.first().copied().unwrap_or(&conflict.uses[0]);
    let edge = edge(flow, own.node, own.operand);
    let beta = edge.beta * common / own.constant;
    let mend = match close(beta, edge.alpha) {
        true => Mend::Constraint(Constraint::ToOutputScale),
        false => Mend::Beta(beta),
    };
    violation(flow, conflict, edge, mend, vec![own.operand])
}

fn violation(
    flow: &Flow<'_>,
    conflict: &Conflict,
    edge: Edge,
    mend: Mend,
    operands: Vec<usize>,
) -> Violation {
    let constants = conflict
        .uses
        .iter()
        .map(|own| (flow.graph.node(own.node).name.clone(), own.constant))
        .collect();
    let value = flow.graph.value_name(conflict.value);
    Violation { value, constants, edge, mend, operands }
}

fn edge(flow: &Flow<'_>, id: NodeId, operand: usize) -> Edge {
    let node = flow.graph.node(id);
    Edge {
        from: flow.graph.value_name(node.inputs[operand]),
        node: id,
        name: node.name.clone(),
        op: node.op.name(),
        operand,
        layer: node.layer,
        alpha: node.alpha[0],
        beta: node.beta[operand],
    }
}
