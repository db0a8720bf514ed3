//! Residual branches and addition.
//!
//! A residual layer gives `(tau f(x) + x)/sqrt(1 + tau^2)`. The factor on the branch is delayed in
//! the backward pass from its end to its start, so that the branch sees gradients of unit scale
//! (arXiv 2407.17465, appendix F).

use crate::scales::positive;
use crate::{Constraint, Error, Parametrisation, Result, Scales};
use onesigma_graph::{Graph, ValueId};

/// Factors of branch and skip: `tau/sqrt(1 + tau^2)` and `1/sqrt(1 + tau^2)`.
///
/// # Errors
/// [`Error::Argument`] for a `tau` that is not positive.
pub fn residual_factors(tau: f64) -> Result<(f64, f64)> {
    positive("residual", "tau", tau)?;
    let norm = tau.hypot(1.0);
    Ok((tau / norm, 1.0 / norm))
}

/// Splits `x` into `(residual, skip)`: both equal `x`; the gradient of the first is multiplied by
/// `tau/sqrt(1 + tau^2)`, that of the second by `1/sqrt(1 + tau^2)`. Regular: plain copies. The
/// copies cost nothing: they are identities, which the pass `clean` removes.
///
/// # Errors
/// As [`residual_factors`].
pub fn residual_split(
    graph: &mut Graph,
    p: Parametrisation,
    x: ValueId,
    tau: f64,
) -> Result<(ValueId, ValueId)> {
    let (branch, skip) = residual_factors(tau)?;
    if !p.is_scaled() {
        return Ok((x, x));
    }
    let residual =
        graph.map(&[x], |x| x[0].clone())?.beta(&[branch]).named("residual_split").one()?;
    let skip = graph.map(&[x], |x| x[0].clone())?.beta(&[skip]).named("skip_split").one()?;
    Ok((residual, skip))
}

/// `residual tau/sqrt(1 + tau^2) + skip/sqrt(1 + tau^2)`; both gradients are the upstream one, as
/// the factors stand in [`residual_split`]. Regular: the plain sum.
///
/// # Errors
/// As [`residual_factors`].
pub fn residual_add(
    graph: &mut Graph,
    p: Parametrisation,
    residual: ValueId,
    skip: ValueId,
    tau: f64,
) -> Result<ValueId> {
    let (factor, _) = residual_factors(tau)?;
    if !p.is_scaled() {
        return plain_add(graph, residual, skip);
    }
    // alpha (r + s/tau): the branch's gradient needs no factor, the skip's is the plain one,
    // 1/tau, times tau.
    let inverse = 1.0 / tau;
    Ok(graph
        .map(&[residual, skip], |x| x[0].clone() + x[1].clone() * inverse)?
        .alpha(factor)
        .beta(&[1.0, tau])
        .named("residual_add")
        .one()?)
}

/// `(tau f(x) + x)/sqrt(1 + tau^2)` with its exact gradient outside of the branch; regular:
/// `f(x) + x`. `branch` builds `f`.
///
/// # Errors
/// As [`residual_factors`]; those of `branch`.
pub fn residual_apply<E: From<Error>>(
    graph: &mut Graph,
    p: Parametrisation,
    x: ValueId,
    tau: f64,
    branch: impl FnOnce(&mut Graph, ValueId) -> Result<ValueId, E>,
) -> Result<ValueId, E> {
    let (residual, skip) = residual_split(graph, p, x, tau)?;
    let residual = branch(graph, residual)?;
    Ok(residual_add(graph, p, residual, skip, tau)?)
}

/// Scales of `x + y` from the element counts of output and operands:
/// `alpha = 2^-1/2`, or 1 if either operand has one element; `beta_i = (out/numel_i)^-1/2`, the
/// constraint over all three. Source: unit-scaling 0.3.5 `add`.
///
/// # Errors
/// As [`Constraint::common`].
pub fn add_scales(out: usize, numel: [usize; 2], constraint: Constraint) -> Result<Scales> {
    let alpha = if numel.contains(&1) { 1.0 } else { 0.5_f64.sqrt() };
    let beta = numel.map(|n| (out.max(1) as f64 / n.max(1) as f64).powf(-0.5));
    Scales::constrained("add", alpha, &beta, 2, constraint)
}

/// `alpha (x + y)`, broadcast. Scales: [`add_scales`]; regular: 1.
///
/// # Errors
/// [`Error::Graph`] if the shapes do not broadcast; as [`add_scales`].
pub fn add(
    graph: &mut Graph,
    p: Parametrisation,
    x: ValueId,
    y: ValueId,
    constraint: Constraint,
) -> Result<ValueId> {
    let (a, b) = (graph.shape(x), graph.shape(y));
    let out = a.broadcast(b).map_or(1, |shape| shape.numel());
    let numel = [a.numel(), b.numel()];
    let scales = p.choose(|| add_scales(out, numel, constraint))?;
    Ok(graph
        .map(&[x, y], |x| x[0].clone() + x[1].clone())?
        .alpha(scales.alpha)
        .beta(&scales.beta)
        .named("add")
        .one()?)
}

fn plain_add(graph: &mut Graph, x: ValueId, y: ValueId) -> Result<ValueId> {
    add(graph, Parametrisation::Regular, x, y, Constraint::None)
}

/// The branch factors of a pre-norm transformer (arXiv 2407.17465, appendix G.2): attention and
/// MLP branches alternate, attention first.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct TransformerResidual {
    /// `r`: weight of all branches against the embedding.
    pub residual_mult: f64,
    /// `q`: weight of attention branches against MLP branches.
    pub residual_attn_ratio: f64,
}

impl Default for TransformerResidual {
    fn default() -> Self {
        Self { residual_mult: 1.0, residual_attn_ratio: 1.0 }
    }
}

impl TransformerResidual {
    /// `tau` of branch `index` of `branches` (two for each layer): with
    /// `a_mlp = r sqrt(2/(1 + q^2))`, `a_attn = q a_mlp`,
    /// `tau = a/sqrt(branches/2 + n_attn a_attn^2 + n_mlp a_mlp^2)`, where `a` is that of the
    /// branch's own kind and the counts are those of the branches before it.
    ///
    /// # Errors
    /// [`Error::Argument`] for factors that are not positive or an index beyond the branches.
    pub fn tau(&self, index: usize, branches: usize) -> Result<f64> {
        positive("transformer_residual", "residual_mult", self.residual_mult)?;
        positive("transformer_residual", "residual_attn_ratio", self.residual_attn_ratio)?;
        if index >= branches {
            return Err(Error::Argument {
                op: "transformer_residual",
                argument: "index",
                found: index.to_string(),
                expected: format!("a branch below {branches}"),
            });
        }
        let (r, q) = (self.residual_mult, self.residual_attn_ratio);
        let mlp = r * (2.0 / (1.0 + q * q)).sqrt();
        let attention = q * mlp;
        let attention_before = index.div_ceil(2) as f64;
        let mlp_before = (index / 2) as f64;
        let own = if index.is_multiple_of(2) { attention } else { mlp };
        let variance =
            branches as f64 / 2.0 + attention_before * attention.powi(2) + mlp_before * mlp.powi(2);
        Ok(own / variance.sqrt())
    }
}
