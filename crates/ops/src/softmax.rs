//! Softmax over any axis.

use crate::scales::{log_mix, positive};
use crate::{Constraint, Error, Parametrisation, Result, Scales};
use onesigma_graph::{Graph, Op, ValueId};

/// Scales of `softmax(m x)` over `n` elements: with `a = 1/(1 + 4/m^2)`,
/// `alpha = log_mix(a, sqrt n, n)`, `beta = log_mix(a, sqrt(n/m), n/m)` relative to the plain
/// gradient, which contains `m`. Source: unit-scaling 0.3.5 `softmax`.
///
/// # Errors
/// [`Error::Argument`] for a `mult` that is not positive; as [`Constraint::common`].
pub fn softmax_scales(n: usize, mult: f64, constraint: Constraint) -> Result<Scales> {
    positive("softmax", "mult", mult)?;
    let a = 1.0 / (1.0 + 4.0 / (mult * mult));
    let n = n.max(1) as f64;
    let (alpha, beta) = (log_mix(a, n.sqrt(), n), log_mix(a, (n / mult).sqrt(), n / mult));
    Scales::constrained("softmax", alpha, &[beta], 1, constraint)
}

/// `alpha softmax(mult x)` over `axis` (negative axes count from the end). Scales:
/// [`softmax_scales`]; regular: 1.
///
/// # Errors
/// [`Error::Argument`] for an axis beyond the rank; as [`softmax_scales`].
pub fn softmax(
    graph: &mut Graph,
    p: Parametrisation,
    x: ValueId,
    axis: isize,
    mult: f64,
    constraint: Constraint,
) -> Result<ValueId> {
    let rank = graph.shape(x).rank();
    let resolved = if axis < 0 { axis + rank as isize } else { axis };
    if resolved < 0 || resolved as usize >= rank {
        return Err(Error::Argument {
            op: "softmax",
            argument: "axis",
            found: axis.to_string(),
            expected: format!("an axis of {}", graph.shape(x)),
        });
    }
    positive("softmax", "mult", mult)?;
    let axis = resolved as usize;
    let n = graph.shape(x).dims()[axis];
    let scales = p.scheme().activation.choose(|| softmax_scales(n, mult, constraint))?;
    // The op works on the last axis: swap it there and back (a swap is its own inverse).
    let mut order: Vec<usize> = (0..rank).collect();
    order.swap(axis, rank - 1);
    let moved = axis + 1 != rank;
    let x = if moved { graph.permute(x, &order)? } else { x };
    let y = graph.op(Op::Softmax { mult }, &[x]).alpha(scales.alpha).beta(&scales.beta).one()?;
    Ok(if moved { graph.permute(y, &order)? } else { y })
}
