//! The auto-scaler: a regular graph in, the unit-scaled one out.
//!
//! [`UnitScale::apply`] takes the forward graph of any model that is built with the regular layers
//! of this crate and gives what the same definition gives with unit-scaled layers:
//!
//! 1. Every layer is recognised by the function that it computes, and gets the scales of its rule.
//! 2. Edges of activations are sorted into cut edges and others, by the bridges of the graph. Ops
//!    on cut edges keep their ideal scales, the others get the parametrisation's constraint. Layers
//!    of a branch whose sizes mirror each other keep theirs too, if the verifier agrees.
//! 3. Sums of a value with a function of itself are residual branches: they get the split and the
//!    sum of [`residual_split`](crate::residual_split) and [`residual_add`](crate::residual_add),
//!    with the weights of the parametrisation's rule.
//! 4. A linear layer that feeds a loss is a readout; attention gets its factor on the logits.
//! 5. Where the verifier finds uses of a value with different constants, they are brought together:
//!    those of a shared parameter at their geometric mean, those of several heads by weights whose
//!    squares sum to 1.
//!
//! The result is proved by [`verify`](crate::verify()) before it is given. Weights of linear
//! layers, convolutions and tables have to start with standard deviation 1;
//! [`Scaled::unit_init`] rewrites the graph that draws them.

mod assemble;
mod plan;
mod recognise;
mod settle;
mod structure;

use crate::verify::{Proof, verify};
use crate::{Constraint, Error, Parametrisation, Result, Scales, TransformerResidual};
use onesigma_graph::passes::rewrite::Rewriter;
use onesigma_graph::{Distribution, Graph, Node, Op, SlotId, ValueId};
use std::fmt;

/// A rule of the caller: scales of a node of the regular graph.
pub type Rule = Box<dyn Fn(&Graph, &Node) -> Result<Scales>>;

/// Options of the auto-scaler.
pub struct UnitScale {
    parametrisation: Parametrisation,
    residual: TransformerResidual,
    tau: Option<f64>,
    attention_keys: Option<usize>,
    rules: Vec<(String, Rule)>,
}

impl fmt::Debug for UnitScale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rules: Vec<&str> = self.rules.iter().map(|(name, _)| &name[..]).collect();
        f.debug_struct("UnitScale")
            .field("parametrisation", &self.parametrisation)
            .field("residual", &self.residual)
            .field("tau", &self.tau)
            .field("attention_keys", &self.attention_keys)
            .field("rules", &rules)
            .finish()
    }
}

/// One op that got scales.
#[derive(Clone, PartialEq, Debug)]
pub struct Replaced {
    /// Name of the node.
    pub node: String,
    /// The rule that it got.
    pub rule: String,
    /// The constraint, for rules that take one.
    pub constraint: Option<Constraint>,
    /// Its forward scale.
    pub alpha: f64,
    /// Its backward scales.
    pub beta: Vec<f64>,
}

impl fmt::Display for Replaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.node, self.rule)?;
        if let Some(constraint) = self.constraint {
            write!(f, " ({constraint})")?;
        }
        let beta: Vec<String> = self.beta.iter().map(|beta| format!("{beta:.6}")).collect();
        write!(f, ", alpha {:.6}, beta {}", self.alpha, beta.join(" "))
    }
}

/// A unit-scaled graph with what was done.
#[derive(Clone, Debug)]
pub struct Scaled {
    /// The graph, with the writes of the regular one.
    pub graph: Graph,
    /// The loss in it.
    pub loss: ValueId,
    /// The parameters in it, in the order in which they were given.
    pub parameters: Vec<ValueId>,
    /// Slots of the weights that have to start with mean 0 and standard deviation 1.
    pub unit_weights: Vec<SlotId>,
    /// Ops that got scales, in order.
    pub replaced: Vec<Replaced>,
    /// Names of ops on the way from parameters to the loss that no rule is for: they stay plain.
    pub kept: Vec<String>,
    /// That its gradients are right.
    pub proof: Proof,
    values: Vec<Option<ValueId>>,
}

impl Scaled {
    /// What stands for a value of the regular graph. `None` for values that the loss does not need
    /// and no slot is written from.
    pub fn value(&self, regular: ValueId) -> Option<ValueId> {
        self.values.get(regular.index()).copied().flatten()
    }

    /// The graph that fills the state with every normal weight of [`unit_weights`](Self::unit_weights)
    /// drawn with standard deviation 1.
    ///
    /// # Errors
    /// As every op.
    pub fn unit_init(&self, init: &Graph) -> Result<Graph> {
        let is_weight = |value: ValueId| {
            init.writes()
                .iter()
                .any(|(slot, own)| *own == value && self.unit_weights.contains(slot))
        };
        let mut rewriter = Rewriter::new(init);
        for node in init.nodes() {
            let mut node = node.clone();
            match &mut node.op {
                Op::Random { distribution: Distribution::Normal { std, .. }, .. }
                    if is_weight(node.outputs[0]) =>
                {
                    *std = 1.0;
                }
                _ => {}
            }
            let inputs = rewriter.values(&node.inputs);
            rewriter.keep(&node, inputs);
        }
        Ok(rewriter.finish())
    }
}

/// Whether a node carries no scales of unit scaling: its gradient is the true one.
fn is_plain(node: &Node) -> bool {
    node.beta.iter().all(|beta| *beta == node.alpha[0])
}

impl UnitScale {
    /// The rules of a parametrisation.
    pub fn new(parametrisation: Parametrisation) -> Self {
        let residual = TransformerResidual::default();
        Self { parametrisation, residual, tau: None, attention_keys: None, rules: Vec::new() }
    }

    /// Weights of the residual branches for the parametrisation's rule.
    #[must_use]
    pub fn residual(mut self, residual: TransformerResidual) -> Self {
        self.residual = residual;
        self
    }

    /// One `tau` for every residual branch, in place of the parametrisation's rule.
    #[must_use]
    pub fn tau(mut self, tau: f64) -> Self {
        self.tau = Some(tau);
        self
    }

    /// The number of keys whose scale every attention gets, in place of its own number
    /// ([`Attention::scale_keys`](crate::Attention::scale_keys)).
    #[must_use]
    pub fn attention_keys(mut self, keys: usize) -> Self {
        self.attention_keys = Some(keys);
        self
    }

    /// A rule of the caller for ops of a name: the last word of a node's path, or the name of its
    /// op. It is asked before the rules of this crate; a later one before an earlier one.
    #[must_use]
    pub fn rule(
        mut self,
        name: &str,
        rule: impl Fn(&Graph, &Node) -> Result<Scales> + 'static,
    ) -> Self {
        self.rules.push((name.to_owned(), Box::new(rule)));
        self
    }

    fn replacement(&self, graph: &Graph, node: &Node) -> Result<Option<Scales>> {
        let word = node.name.rsplit('.').next().unwrap_or(&node.name);
        let rule = self.rules.iter().rev().find(|(name, _)| name == word || name == node.op.name());
        rule.map(|(_, rule)| rule(graph, node)).transpose()
    }

    /// Turns a regular forward graph into a unit-scaled one; nodes after the loss are left out.
    ///
    /// ```
    /// use onesigma_graph::{DType, Graph, Module, Role, SlotKind};
    /// use onesigma_ops::unit_scale::UnitScale;
    /// use onesigma_ops::{Linear, Parametrisation, linear, mse_loss, residual_apply};
    ///
    /// # fn main() -> Result<(), onesigma_ops::Error> {
    /// let mut module = Module::new();
    /// let mut graph = Graph::new();
    /// let x = module.slot("x", SlotKind::Input, [8, 16], DType::F32, Role::Data)?;
    /// let t = module.slot("t", SlotKind::Input, [8, 16], DType::F32, Role::Data)?;
    /// let a = module.slot("a", SlotKind::State, [16, 16], DType::F32, Role::MasterWeight)?;
    /// let b = module.slot("b", SlotKind::State, [16, 16], DType::F32, Role::MasterWeight)?;
    /// let [x, t, a, b] = [x, t, a, b].map(|slot| module.read(&mut graph, slot));
    /// let p = Parametrisation::Regular;
    /// let x = linear(&mut graph, p, x, a, None, Linear::default())?;
    /// let y = residual_apply(&mut graph, p, x, 1.0, |graph, x| {
    ///     linear(graph, p, x, b, None, Linear::default())
    /// })?;
    /// let loss = mse_loss(&mut graph, p, y, t, true)?;
    ///
    /// let scaled = UnitScale::new(Parametrisation::UMup).apply(&graph, loss, &[a, b])?;
    /// let report: Vec<String> = scaled.replaced.iter().map(|op| op.to_string()).collect();
    /// assert_eq!(report[0], "linear: linear (none), alpha 0.250000, beta 0.250000 0.353553");
    /// assert!(report[1].starts_with("residual_split: residual, tau 1.414214"));
    /// assert!(report[3].starts_with("linear: linear (to_output_scale)"));
    /// assert_eq!(scaled.unit_weights.len(), 2);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::AlreadyScaled`] for a graph that carries scales; those of the rules, for layers
    /// with arguments outside their range; [`Error::CutEdge`] if rules of the caller cannot be
    /// brought in line with the cut-edge rule.
    pub fn apply(&self, graph: &Graph, loss: ValueId, parameters: &[ValueId]) -> Result<Scaled> {
        let s = structure::Structure::new(graph, loss, parameters);
        if let Some(node) = graph.nodes()[..s.count].iter().find(|node| !is_plain(node)) {
            return Err(Error::AlreadyScaled { node: node.name.clone() });
        }
        let plans = plan::plans(&s, self)?;
        let mut draft = assemble::assemble(&s, &plans, self)?;
        draft.relax(&s, &plans, loss, parameters)?;
        draft.settle(loss, parameters)?;
        let value = |regular: ValueId| draft.values[regular.index()];
        let find = |regular: ValueId| value(regular).unwrap_or(regular);
        let new_parameters: Vec<ValueId> = parameters.iter().map(|&value| find(value)).collect();
        let proof = verify(&draft.graph, find(loss), &new_parameters)?;
        Ok(Scaled {
            loss: find(loss),
            parameters: new_parameters,
            unit_weights: assemble::unit_weights(&s, &plans),
            replaced: draft.report(),
            kept: plan::kept(&s, &plans),
            proof,
            graph: draft.graph,
            values: draft.values,
        })
    }
}
