//! The verifier: a proof, from the graph alone, that its gradients are right.
//!
//! Scales may differ between forward and backward; then the gradient that autodiff computes is not
//! that of the function. [`verify`] proves that the gradient of every parameter is the true one
//! times one known constant, and returns these constants, or a [`Violation`]: the edge that breaks
//! the proof and what would mend it.
//!
//! # The proof
//!
//! Let `c(v)` be the number with `computed gradient of v = c(v) · true gradient of v`. For the loss
//! it is 1. A node computes `dx_i = beta_i (df/dx_i)^T dy`, and the true gradient of its result
//! `y = alpha f(x)` is `alpha (df/dx_i)^T dy`; so what it contributes to operand `i` is
//! `c(y) beta_i / alpha` times its true contribution, whatever `f` is. Contributions of several
//! uses add up: their sum is proportional to the true sum if all carry the same constant. If they
//! do at every value that is used more than once, each `c` is well defined, which proves the claim
//! for all inputs.
//!
//! This is the cut-edge rule of arXiv 2303.11257 (section 4.2), refined: an edge whose removal cuts
//! the graph in two lies on no pair of ways that part and meet, so its scales are free; on other
//! edges `alpha = beta` is sufficient, and what is necessary is that the products of `beta/alpha`
//! along the ways agree. The factors of residual branches, which are delayed in the backward pass
//! from the end of the branch to its start, and the two layers of an MLP, whose sizes mirror each
//! other, are right by the refined rule alone.
//!
//! Values that depend on no parameter (data, masks, tables of constants) and operands without
//! influence on the gradient (those of comparisons) need no constant: nothing is computed there.

mod blame;
mod share;
mod sums;

pub(crate) use blame::locate;
pub use blame::{Edge, Mend, Violation};
pub(crate) use share::share;
pub use share::share_parameter;

use crate::{Error, Result};
use onesigma_graph::expr::Instr;
use onesigma_graph::{DType, Graph, Node, NodeId, Op, ReduceKind, ValueId};

/// Constants that differ by less than this part are one: they are products of a few hundred
/// factors, each rounded to f64.
pub(crate) const TOLERANCE: f64 = 1e-9;

/// That every gradient of a graph is right up to a constant.
#[derive(Clone, PartialEq, Debug)]
pub struct Proof {
    constants: Vec<Option<f64>>,
}

impl Proof {
    /// `c` in `computed gradient = c · true gradient` of a value, where the true gradient is that
    /// of the loss as the graph computes it, with its forward scales. `None` if the loss does not
    /// depend on the value or the value on no parameter.
    pub fn constant(&self, value: ValueId) -> Option<f64> {
        self.constants.get(value.index()).copied().flatten()
    }
}

/// Proves that the gradients of `loss` for `parameters` are the true ones times constants. Nodes
/// after the loss, such as a backward pass that stands already, are not looked at.
///
/// ```
/// use onesigma_graph::{DType, Graph, Module, ReduceKind, Role, SlotKind};
/// use onesigma_ops::{Error, Linear, Parametrisation, linear, residual_apply, verify};
///
/// # fn main() -> Result<(), Error> {
/// let mut module = Module::new();
/// let x = module.slot("x", SlotKind::Input, [8, 16], DType::F32, Role::Data)?;
/// let a = module.slot("a", SlotKind::State, [16, 16], DType::F32, Role::MasterWeight)?;
/// let b = module.slot("b", SlotKind::State, [64, 16], DType::F32, Role::MasterWeight)?;
/// let c = module.slot("c", SlotKind::State, [16, 64], DType::F32, Role::MasterWeight)?;
/// let model = |free: Linear| -> Result<_, Error> {
///     let mut graph = Graph::new();
///     let [x, a, b, c] = [x, a, b, c].map(|slot| module.read(&mut graph, slot));
///     let p = Parametrisation::UMup;
///     let x = linear(&mut graph, p, x, a, None, Linear::unconstrained())?;
///     let x = residual_apply(&mut graph, p, x, 0.5, |graph, x| {
///         let x = linear(graph, p, x, b, None, Linear::unconstrained())?;
///         linear(graph, p, x, c, None, free)
///     })?;
///     let loss =
///         graph.reduce(ReduceKind::Sum, &[x], &[0, 1], false, |x| x[0].square())?.one()?;
///     Ok((graph, loss, [a, b, c]))
/// };
/// // Up and down mirror each other: the branch's gradient is right, and c's is 4.47 times too
/// // large, as the branch's factor is missing in it and it sums over 8 rows.
/// let (graph, loss, weights) = model(Linear::unconstrained())?;
/// let proof = verify(&graph, loss, &weights)?;
/// let constant = proof.constant(weights[2]).expect("the loss depends on it");
/// assert!((constant - 5_f64.sqrt() * 8.0 * 8_f64.powf(-0.5)).abs() < 1e-12);
/// // With another constraint on one of the two they do not.
/// let (graph, loss, weights) = model(Linear::default())?;
/// let Err(Error::CutEdge(violation)) = verify(&graph, loss, &weights) else { panic!() };
/// assert_eq!(violation.mend.to_string(), "the constraint `to_output_scale`");
/// let mended = violation.mend(&graph)?;
/// assert!(verify(&mended, loss, &weights).is_ok());
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::CutEdge`] with the edge that breaks the rule; [`Error::Graph`] for an op without
/// gradient on the way to a parameter; [`Error::Argument`] for a result that is scaled by 0.
pub fn verify(graph: &Graph, loss: ValueId, parameters: &[ValueId]) -> Result<Proof> {
    let flow = Flow::new(graph, loss, parameters)?;
    match flow.constants(&|node, operand| flow.ratio(node, operand)) {
        Ok(constants) => Ok(Proof { constants }),
        Err(conflict) => Err(Error::CutEdge(Box::new(locate(&flow, &conflict)))),
    }
}

/// The same function with its true gradient: every backward scale becomes the forward scale of its
/// node. What [`verify`] proves is proved against this graph.
///
/// # Errors
/// Those of [`Graph::set_scales`], for a graph with scales that no builder would take.
pub fn exact_gradients(graph: &Graph) -> Result<Graph> {
    let mut exact = graph.clone();
    for id in (0..graph.nodes().len()).map(NodeId::new) {
        let node = graph.node(id);
        let alpha = node.alpha.first().copied().unwrap_or(1.0);
        exact.set_scales(id, &node.alpha, &vec![alpha; node.inputs.len()])?;
    }
    Ok(exact)
}

/// A use of a value and the constant that its contribution carries.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Use {
    pub node: NodeId,
    pub operand: usize,
    pub constant: f64,
}

/// A value whose uses carry different constants. Everything between it and the loss is consistent.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Conflict {
    pub value: ValueId,
    pub uses: Vec<Use>,
}

impl Conflict {
    /// The constant of most uses, in a draw the one that the value would have by its last use.
    fn majority(&self) -> f64 {
        let votes = |constant: f64| {
            self.uses.iter().filter(|other| close(other.constant, constant)).count()
        };
        let mut best = self.uses[0].constant;
        for candidate in &self.uses {
            if votes(candidate.constant) >= votes(best) {
                best = candidate.constant;
            }
        }
        best
    }

    /// By how much the constants lie apart, as a difference of logarithms.
    fn spread(&self) -> f64 {
        let all = self.uses.iter().map(|own| (own.constant / self.uses[0].constant).abs().ln());
        let (low, high) = all.fold((0.0_f64, 0.0_f64), |(low, high), x| (low.min(x), high.max(x)));
        high - low
    }
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= TOLERANCE * a.abs().max(b.abs())
}

/// Which way gradients take through the forward part of a graph.
pub(crate) struct Flow<'g> {
    graph: &'g Graph,
    loss: ValueId,
    /// For every value whether it depends on a parameter.
    wanted: Vec<bool>,
    /// For every node up to the loss whether each operand receives a contribution.
    receives: Vec<Vec<bool>>,
}

impl<'g> Flow<'g> {
    pub fn new(graph: &'g Graph, loss: ValueId, parameters: &[ValueId]) -> Result<Self> {
        let mut wanted = vec![false; graph.values().len()];
        for parameter in parameters {
            wanted[parameter.index()] = true;
        }
        let last = graph.value(loss).producer.index();
        for node in &graph.nodes()[..=last] {
            if node.inputs.iter().any(|input| wanted[input.index()]) {
                node.outputs.iter().for_each(|output| wanted[output.index()] = true);
            }
        }
        let mut flow = Self { graph, loss, wanted, receives: vec![Vec::new(); last + 1] };
        let mut reached = vec![false; graph.values().len()];
        reached[loss.index()] = true;
        for index in (0..=last).rev() {
            let node = &graph.nodes()[index];
            let depends = node.inputs.iter().any(|input| flow.wanted[input.index()]);
            if !depends || !node.outputs.iter().any(|output| reached[output.index()]) {
                continue;
            }
            check_differentiable(node, &reached)?;
            let influence = influence(node);
            let receives: Vec<bool> = node
                .inputs
                .iter()
                .zip(influence)
                .map(|(input, influence)| {
                    influence
                        && flow.wanted[input.index()]
                        && graph.value(*input).dtype != DType::U32
                })
                .collect();
            for (input, _) in node.inputs.iter().zip(&receives).filter(|(_, receives)| **receives) {
                reached[input.index()] = true;
            }
            flow.receives[index] = receives;
        }
        Ok(flow)
    }

    pub fn graph(&self) -> &'g Graph {
        self.graph
    }

    /// `beta/alpha` of an operand.
    pub fn ratio(&self, node: NodeId, operand: usize) -> f64 {
        let node = self.graph.node(node);
        node.beta[operand] / node.alpha[0]
    }

    /// Operands of a node that receive a contribution.
    fn operands(&self, node: NodeId) -> impl Iterator<Item = usize> + '_ {
        let receives = self.receives.get(node.index()).map_or(&[][..], Vec::as_slice);
        receives.iter().enumerate().filter(|(_, receives)| **receives).map(|(operand, _)| operand)
    }

    /// The constant of every value on the way from the loss to a parameter, for given ratios, or
    /// the conflict that is next to the loss.
    pub fn constants(
        &self,
        ratio: &dyn Fn(NodeId, usize) -> f64,
    ) -> Result<Vec<Option<f64>>, Conflict> {
        let mut uses: Vec<Vec<Use>> = vec![Vec::new(); self.graph.values().len()];
        let mut constants = vec![None; self.graph.values().len()];
        for index in (0..self.receives.len()).rev() {
            let id = NodeId::new(index);
            for &output in &self.graph.node(id).outputs {
                let own = &uses[output.index()];
                if let Some(first) = own.first() {
                    if own.iter().any(|other| !close(other.constant, first.constant)) {
                        let mut uses = own.clone();
                        uses.reverse(); // in execution order
                        return Err(Conflict { value: output, uses });
                    }
                    constants[output.index()] = Some(first.constant);
                }
                if output == self.loss {
                    constants[output.index()] = Some(1.0);
                }
            }
            let Some(constant) = constants[self.graph.node(id).outputs[0].index()] else {
                continue;
            };
            // The later operand of a node counts as the later use.
            let operands: Vec<usize> = self.operands(id).collect();
            for &operand in operands.iter().rev() {
                let input = self.graph.node(id).inputs[operand];
                let constant = constant * ratio(id, operand);
                uses[input.index()].push(Use { node: id, operand, constant });
            }
        }
        Ok(constants)
    }

    /// Whether each value depends on `from`.
    pub fn descendants(&self, from: ValueId) -> Vec<bool> {
        let mut depends = vec![false; self.graph.values().len()];
        depends[from.index()] = true;
        for (index, receives) in self.receives.iter().enumerate() {
            let node = &self.graph.nodes()[index];
            let through = node.inputs.iter().zip(receives);
            if through.filter(|(_, receives)| **receives).any(|(input, _)| depends[input.index()]) {
                node.outputs.iter().for_each(|output| depends[output.index()] = true);
            }
        }
        depends
    }
}

/// Whether an operand of a node has influence on its gradient at all: an expression may use an
/// operand in comparisons only.
fn influence(node: &Node) -> Vec<bool> {
    match &node.op {
        Op::Map { expr, .. } | Op::Reduce { expr, .. } => expr
            .gradients()
            .iter()
            .map(|gradient| !matches!(gradient.instrs(), [Instr::Const(value)] if *value == 0.0))
            .collect(),
        _ => vec![true; node.inputs.len()],
    }
}

/// Refuses what autodiff would refuse, or pass over in silence.
fn check_differentiable(node: &Node, reached: &[bool]) -> Result<()> {
    let without = matches!(
        node.op,
        Op::Reduce { kind: ReduceKind::Max, .. }
            | Op::SoftmaxGrad { .. }
            | Op::LayerNormGrad { .. }
            | Op::RmsNormGrad { .. }
            | Op::AttentionGrad { .. }
            | Op::CrossEntropyGrad { .. }
            | Op::AdamW(_)
    );
    // Only first results have a gradient: the second of attention is a statistic.
    let by_other = node.outputs.iter().skip(1).any(|output| reached[output.index()]);
    if without || by_other {
        let (node, op) = (node.name.clone(), node.op.name());
        return Err(onesigma_graph::Error::NotDifferentiable { node, op }.into());
    }
    if node.alpha[0] == 0.0 {
        return Err(Error::Argument {
            op: node.op.name(),
            argument: "alpha",
            found: format!("0 in `{}`", node.name),
            expected: "a forward scale that is not 0".to_owned(),
        });
    }
    Ok(())
}
