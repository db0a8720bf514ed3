//! Optimisers as graph ops, so that the update is part of the compiled step.

use onesigma_graph::expr::Term;
use onesigma_graph::{AdamWConfig, Graph, Op, Result, Role, ValueId};
use serde::{Deserialize, Serialize};

/// The constants of an optimiser.
///
/// In the formulas `g = grad_factor · gradient`, `lr` is the step's learning rate and `s` the
/// parameter's own factor on it; decay applies to parameters that ask for it, at the rate `lr`
/// without `s` (fully decoupled from the factor).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Optimizer {
    /// AdamW (Loshchilov and Hutter, arXiv 1711.05101), see [`AdamWConfig`].
    AdamW {
        /// Decay of the first moment.
        beta1: f64,
        /// Decay of the second moment.
        beta2: f64,
        /// Added to the root of the second moment.
        eps: f64,
        /// Weight decay per unit of learning rate.
        decay: f64,
    },
    /// Adam (Kingma and Ba, arXiv 1412.6980): AdamW's moments, with the decay added to the
    /// gradient as a penalty on the weights instead: `g = grad_factor · gradient + c decay w`,
    /// where `c` is the known constant of the gradient, so that `decay` means the same under unit
    /// scaling.
    Adam {
        /// Decay of the first moment.
        beta1: f64,
        /// Decay of the second moment.
        beta2: f64,
        /// Added to the root of the second moment.
        eps: f64,
        /// Factor of the penalty `decay w² / 2` on the loss.
        decay: f64,
    },
    /// Lion (Chen et al., arXiv 2302.06675, algorithm 2):
    ///
    /// ```text
    /// u  = sign(beta1 m + (1 - beta1) g)
    /// m' = beta2 m + (1 - beta2) g
    /// w' = w (1 - lr decay) - lr s u
    /// ```
    Lion {
        /// Weight of the moment in the update.
        beta1: f64,
        /// Decay of the moment.
        beta2: f64,
        /// Weight decay per unit of learning rate.
        decay: f64,
    },
    /// Stochastic gradient descent with heavy-ball momentum:
    ///
    /// ```text
    /// m' = momentum m + g
    /// w' = w (1 - lr decay) - lr s m'
    /// ```
    Sgd {
        /// Decay of the first moment; 0 is plain descent.
        momentum: f64,
        /// Weight decay per unit of learning rate.
        decay: f64,
    },
}

/// What the update of one parameter needs to know of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule {
    /// Its own factor on the learning rate.
    pub lr_scale: f64,
    /// Whether weight decay applies to it.
    pub decays: bool,
    /// `c` in `computed gradient = c · true gradient`.
    pub constant: f64,
}

/// The scalars that every parameter's update shares.
#[derive(Clone, Copy, Debug)]
pub struct StepScalars {
    /// Learning rate, `F32 []`.
    pub lr: ValueId,
    /// Steps done before, `U32 []`.
    pub step: ValueId,
    /// Factor on the gradients, `F32 []`; exactly 0 skips the update.
    pub grad_factor: ValueId,
}

impl Optimizer {
    /// Names and roles of the states that it keeps for each parameter.
    pub fn moments(&self) -> &'static [(&'static str, Role)] {
        match self {
            Self::AdamW { .. } | Self::Adam { .. } => {
                &[("first_moment", Role::FirstMoment), ("second_moment", Role::SecondMoment)]
            }
            Self::Sgd { .. } | Self::Lion { .. } => &[("first_moment", Role::FirstMoment)],
        }
    }

    /// Whether an update asks for [`Rule::constant`].
    pub fn needs_constants(&self) -> bool {
        matches!(self, Self::Adam { decay, .. } if *decay > 0.0)
    }

    /// Appends the update of one parameter: its new value and its new moments, in the order of
    /// [`Optimizer::moments`].
    ///
    /// # Errors
    /// Those of building the nodes, for shapes that differ.
    pub fn update(
        &self,
        graph: &mut Graph,
        weight: ValueId,
        gradient: ValueId,
        moments: &[ValueId],
        scalars: StepScalars,
        rule: Rule,
    ) -> Result<(ValueId, Vec<ValueId>)> {
        let decays = |decay| if rule.decays { decay } else { 0.0 };
        match *self {
            Self::AdamW { beta1, beta2, eps, decay } => {
                let decay = decays(decay);
                let config = AdamWConfig { beta1, beta2, eps, decay, lr_scale: rule.lr_scale };
                adamw(graph, config, weight, gradient, moments, scalars)
            }
            Self::Adam { beta1, beta2, eps, decay } => {
                let penalty = decays(decay) * rule.constant;
                let config = AdamWConfig { beta1, beta2, eps, decay: 0.0, lr_scale: rule.lr_scale };
                if penalty == 0.0 {
                    return adamw(graph, config, weight, gradient, moments, scalars);
                }
                let factor = scalars.grad_factor;
                let penalised = graph
                    .map(&[gradient, weight, factor], |x| {
                        x[0].clone() * x[2].clone() + x[1].clone() * penalty
                    })?
                    .named("penalised")
                    .role(Role::Statistic)
                    .one()?;
                // The factor is in the gradient already; 0 has to go on skipping.
                let taken = graph
                    .map(&[factor], |x| x[0].equal(0.0).select(0.0, 1.0))?
                    .named("taken")
                    .role(Role::Statistic)
                    .one()?;
                let scalars = StepScalars { grad_factor: taken, ..scalars };
                adamw(graph, config, weight, penalised, moments, scalars)
            }
            Self::Lion { beta1, beta2, decay } => {
                let decay = decays(decay);
                let (old, factor) = (moments[0], scalars.grad_factor);
                let new_weight = graph
                    .map(&[weight, old, gradient, factor, scalars.lr], |x| {
                        let gradient = x[2].clone() * x[3].clone();
                        let mixed = x[1].clone() * beta1 + gradient * (1.0 - beta1);
                        let sign = mixed.less(0.0).select(-1.0, mixed.equal(0.0).select(0.0, 1.0));
                        // A comparison with NaN is false: keep it, so that it can be seen.
                        let sign = mixed.equal(mixed.clone()).select(sign, mixed);
                        moved(&x[0], &x[4], decay, rule.lr_scale, sign, &x[3])
                    })?
                    .named("lion")
                    .role(Role::MasterWeight)
                    .one()?;
                let moment = heavy(graph, old, gradient, factor, beta2, 1.0 - beta2)?;
                Ok((new_weight, vec![moment]))
            }
            Self::Sgd { momentum, decay } => {
                let decay = decays(decay);
                let factor = scalars.grad_factor;
                let moment = heavy(graph, moments[0], gradient, factor, momentum, 1.0)?;
                let new_weight = graph
                    .map(&[weight, moment, factor, scalars.lr], |x| {
                        moved(&x[0], &x[3], decay, rule.lr_scale, x[1].clone(), &x[2])
                    })?
                    .named("sgd")
                    .role(Role::MasterWeight)
                    .one()?;
                Ok((new_weight, vec![moment]))
            }
        }
    }
}

/// The fused op on its operands.
fn adamw(
    graph: &mut Graph,
    config: AdamWConfig,
    weight: ValueId,
    gradient: ValueId,
    moments: &[ValueId],
    StepScalars { lr, step, grad_factor }: StepScalars,
) -> Result<(ValueId, Vec<ValueId>)> {
    let mut operands = vec![weight, gradient];
    operands.extend_from_slice(moments);
    operands.extend([lr, step, grad_factor]);
    let results = graph.op(Op::AdamW(config), &operands).named("adamw").all()?;
    Ok((results[0], results[1..].to_vec()))
}

/// `old · kept + factor · gradient · taken`, or `old` where the factor is 0.
fn heavy(
    graph: &mut Graph,
    old: ValueId,
    gradient: ValueId,
    factor: ValueId,
    kept: f64,
    taken: f64,
) -> Result<ValueId> {
    graph
        .map(&[old, gradient, factor], |x| {
            let gradient = x[1].clone() * x[2].clone();
            let gradient = if taken == 1.0 { gradient } else { gradient * taken };
            x[2].equal(0.0).select(x[0].clone(), x[0].clone() * kept + gradient)
        })?
        .named("momentum")
        .role(Role::FirstMoment)
        .one()
}

/// `weight (1 - lr decay) - lr lr_scale update`, or `weight` where the factor is 0.
fn moved(weight: &Term, lr: &Term, decay: f64, lr_scale: f64, update: Term, factor: &Term) -> Term {
    let kept = Term::constant(1.0) - lr.clone() * decay;
    let moved = weight.clone() * kept - lr.clone() * lr_scale * update;
    factor.equal(0.0).select(weight.clone(), moved)
}
