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
            Self::AdamW { .. } => {
                &[("first_moment", Role::FirstMoment), ("second_moment", Role::SecondMoment)]
            }
            Self::Sgd { .. } => &[("first_moment", Role::FirstMoment)],
        }
    }

    /// Appends the update of one parameter: its new value and its new moments, in the order of
    /// [`Optimizer::moments`]. `lr_scale` is its factor on the learning rate, `decays` whether
    /// weight decay applies to it.
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
        lr_scale: f64,
        decays: bool,
    ) -> Result<(ValueId, Vec<ValueId>)> {
        let StepScalars { lr, step, grad_factor } = scalars;
        match *self {
            Self::AdamW { beta1, beta2, eps, decay } => {
                let decay = if decays { decay } else { 0.0 };
                let config = AdamWConfig { beta1, beta2, eps, decay, lr_scale };
                let mut operands = vec![weight, gradient];
                operands.extend_from_slice(moments);
                operands.extend([lr, step, grad_factor]);
                let results = graph.op(Op::AdamW(config), &operands).named("adamw").all()?;
                Ok((results[0], results[1..].to_vec()))
            }
            Self::Sgd { momentum, decay } => {
                let decay = if decays { decay } else { 0.0 };
                let skipped = |x: &[Term]| x[2].equal(0.0);
                let new_moment = graph
                    .map(&[moments[0], gradient, grad_factor], |x| {
                        let moved = x[0].clone() * momentum + x[1].clone() * x[2].clone();
                        skipped(x).select(x[0].clone(), moved)
                    })?
                    .named("momentum")
                    .role(Role::FirstMoment)
                    .one()?;
                let new_weight = graph
                    .map(&[weight, new_moment, grad_factor, lr], |x| {
                        let lr = x[3].clone();
                        let kept = Term::constant(1.0) - lr.clone() * decay;
                        let moved = x[0].clone() * kept - lr * lr_scale * x[1].clone();
                        skipped(x).select(x[0].clone(), moved)
                    })?
                    .named("sgd")
                    .role(Role::MasterWeight)
                    .one()?;
                Ok((new_weight, vec![new_moment]))
            }
        }
    }
}
