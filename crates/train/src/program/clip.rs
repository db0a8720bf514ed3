//! Clipping by the global norm (Pascanu, Mikolov and Bengio, arXiv 1211.5063, section 3.2), as ops
//! of the program.
//!
//! The norm is that of the *true* gradient of the mean loss over all parameters. What a step
//! computes differs from it by known factors: the constant of each parameter's gradient, which the
//! verifier proves (unit scaling puts gradients at unit scale, so the constants are far from 1);
//! a loss scale; and the number of passes that are summed. The norm takes all of them out, so one
//! limit means the same under every recipe that the same model is trained with.

use onesigma_graph::expr::Term;
use onesigma_graph::{Graph, ReduceKind, Role, ValueId};

use super::constant;
use crate::Result;

/// `grad_factor · sqrt(Σ_p |gradient_p|² / constant_p²)`, a scalar.
pub(super) fn norm(
    graph: &mut Graph,
    gradients: &[ValueId],
    constants: &[f64],
    grad_factor: ValueId,
) -> Result<ValueId> {
    let mut sum = constant(graph, [0; 0].into(), 0.0, Role::Statistic)?;
    for (&gradient, &constant) in gradients.iter().zip(constants) {
        let axes: Vec<isize> = (0..graph.shape(gradient).rank() as isize).collect();
        // The factors go inside the square: alone, neither they nor the gradients need to be of a
        // size whose square f32 holds.
        let own = graph
            .reduce(ReduceKind::Sum, &[gradient, grad_factor], &axes, false, |x| {
                (x[0].clone() * x[1].clone() * constant.recip()).square()
            })?
            .named("grad_square")
            .role(Role::Statistic)
            .one()?;
        sum = graph
            .map(&[sum, own], |x| x[0].clone() + x[1].clone())?
            .named("grad_squares")
            .role(Role::Statistic)
            .one()?;
    }
    Ok(graph.map(&[sum], |x| x[0].sqrt())?.named("grad_norm").role(Role::Statistic).one()?)
}

/// The factor that leaves a gradient of this norm at most `limit` long: 0, which skips the update,
/// if the norm is not finite.
pub(super) fn shortened(
    graph: &mut Graph,
    grad_factor: ValueId,
    norm: ValueId,
    limit: f64,
) -> Result<ValueId> {
    Ok(graph
        .map(&[grad_factor, norm], |x| {
            let (factor, norm) = (&x[0], &x[1]);
            let shortened = factor.clone() * (Term::constant(limit) / norm.clone());
            let short = norm.less_equal(limit).select(factor.clone(), shortened);
            norm.less_equal(f64::from(f32::MAX)).select(short, 0.0)
        })?
        .named("clipped_factor")
        .role(Role::Statistic)
        .one()?)
}
