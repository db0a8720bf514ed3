//! Residual branches and addition.
//!
//! A residual layer gives `(tau f(x) + x)/sqrt(1 + tau^2)`. The factor on the branch is delayed in
//! the backward pass from its end to its start, so that the branch sees gradients of unit scale
//! (arXiv 2407.17465, appendix F).

use crate::scales::positive;
use crate::{Constraint, Error, Parametrisation, Result, Scales};
use onesigma_graph::{Graph, ValueId};
use serde::Serialize;

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
/// `tau/sqrt(1 + tau^2)`, that of the second by `1/sqrt(1 + tau^2)`. Regular and `mu-s`: `x` twice.
/// The copies cost nothing: they are identities, which the pass `clean` removes.
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
    if !p.scheme().delayed {
        return Ok((x, x));
    }
    let residual =
        graph.map(&[x], |x| x[0].clone())?.beta(&[branch]).named("residual_split").one()?;
    let skip = graph.map(&[x], |x| x[0].clone())?.beta(&[skip]).named("skip_split").one()?;
    Ok((residual, skip))
}

/// `residual tau/sqrt(1 + tau^2) + skip/sqrt(1 + tau^2)`; both gradients are the upstream one, as
/// the factors stand in [`residual_split`]; in `mu-s` they stand here. Regular: the plain sum.
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
    if p.scheme().residual == ResidualRule::Plain {
        return add(graph, p, residual, skip, Constraint::None);
    }
    // alpha (r + s/tau): the branch's gradient needs no factor, the skip's is the plain one,
    // 1/tau, times tau.
    let inverse = 1.0 / tau;
    let beta = if p.scheme().delayed { [1.0, tau] } else { [factor; 2] };
    Ok(graph
        .map(&[residual, skip], |x| x[0].clone() + x[1].clone() * inverse)?
        .alpha(factor)
        .beta(&beta)
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
    let scales = p.scheme().sum.choose(|| add_scales(out, numel, constraint))?;
    Ok(graph
        .map(&[x, y], |x| x[0].clone() + x[1].clone())?
        .alpha(scales.alpha)
        .beta(&scales.beta)
        .named("add")
        .one()?)
}

/// How the weights of residual branches are chosen. Branches of attention and MLP alternate,
/// attention first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResidualRule {
    /// Plain sums.
    Plain,
    /// Every branch counts as much as the embedding in the last hidden state: of `index + 2` terms
    /// the branch has one share (arXiv 2303.11257, section 5, "running mean").
    RunningMean,
    /// All branches of a kind together count as much as the embedding (arXiv 2407.17465,
    /// appendix G.2).
    DepthAware,
    /// Every branch has the same share of its sum, [`fixed_share`] (arXiv 2502.05967).
    Fixed,
}

/// What a model sets of its residual weights.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct TransformerResidual {
    /// `r`: weight of all branches against the embedding; not for fixed shares.
    pub residual_mult: f64,
    /// `q`: weight of attention branches against MLP branches; not for fixed shares.
    pub residual_attn_ratio: f64,
}

impl Default for TransformerResidual {
    fn default() -> Self {
        Self { residual_mult: 1.0, residual_attn_ratio: 1.0 }
    }
}

/// The share of a branch in the variance of its sum, in a model of `layers` with fixed shares:
/// `min(1/2, 0.8/sqrt(layers))`, a curve through the two that arXiv 2502.05967 names, 0.4 for 4
/// layers and 0.1 for deep models; a coarse choice is said to be enough.
pub fn fixed_share(layers: usize) -> f64 {
    (0.8 / (layers.max(1) as f64).sqrt()).min(0.5)
}

impl TransformerResidual {
    /// `tau` of branch `index` of `branches` (two for each layer), as [`residual_add`] takes it.
    ///
    /// With `a_mlp = r sqrt(2/(1 + q^2))`, `a_attn = q a_mlp`, it is `a/sqrt(e + n_attn a_attn^2 +
    /// n_mlp a_mlp^2)`, where `a` is that of the branch's own kind, the counts are those of the
    /// branches before it, and `e` is the number of layers (depth-aware) or 1 (running mean). A
    /// fixed share `s` is `tau = sqrt(s/(1-s))`. Plain sums have 1.
    ///
    /// # Errors
    /// [`Error::Argument`] for factors that are not positive or an index beyond the branches.
    pub fn tau(&self, rule: ResidualRule, index: usize, branches: usize) -> Result<f64> {
        let kinds: Vec<bool> = (0..branches).map(|branch| branch.is_multiple_of(2)).collect();
        self.tau_of(rule, index, &kinds)
    }

    /// As [`tau`](Self::tau) for branches in any order; `is_attention` has one entry for each.
    ///
    /// # Errors
    /// As [`tau`](Self::tau).
    pub fn tau_of(&self, rule: ResidualRule, index: usize, is_attention: &[bool]) -> Result<f64> {
        let branches = is_attention.len();
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
        let layers = branches as f64 / 2.0;
        match rule {
            ResidualRule::Plain => Ok(1.0),
            ResidualRule::RunningMean => Ok(self.accumulated(index, is_attention, 1.0)),
            ResidualRule::DepthAware => Ok(self.accumulated(index, is_attention, layers)),
            ResidualRule::Fixed => {
                let share = fixed_share(branches.div_ceil(2));
                Ok((share / (1.0 - share)).sqrt())
            }
        }
    }

    /// `tau` of a branch after others and an embedding of this variance.
    fn accumulated(&self, index: usize, is_attention: &[bool], embedding: f64) -> f64 {
        let (r, q) = (self.residual_mult, self.residual_attn_ratio);
        let mlp = r * (2.0 / (1.0 + q * q)).sqrt();
        let attention = q * mlp;
        let before = is_attention[..index].iter();
        let attention_before = before.filter(|is_attention| **is_attention).count();
        let (attention_before, mlp_before) =
            (attention_before as f64, (index - attention_before) as f64);
        let own = if is_attention[index] { attention } else { mlp };
        let before = attention_before * attention.powi(2) + mlp_before * mlp.powi(2);
        own / (embedding + before).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_mean_gives_every_branch_and_the_embedding_one_share() -> Result<()> {
        let weights = TransformerResidual::default();
        // Variance of each term of the last state, the embedding first.
        let mut terms = vec![1.0_f64];
        for index in 0..6 {
            let tau = weights.tau(ResidualRule::RunningMean, index, 6)?;
            let (branch, skip) = residual_factors(tau)?;
            terms.iter_mut().for_each(|term| *term *= skip * skip);
            terms.push(branch * branch);
        }
        assert!(terms.iter().all(|term| (term - 1.0 / 7.0).abs() < 1e-12), "{terms:?}");
        Ok(())
    }

    #[test]
    fn a_fixed_share_is_the_share_of_the_variance() -> Result<()> {
        let weights = TransformerResidual::default();
        let branch = |weights: &TransformerResidual, branches| {
            let tau = weights.tau(ResidualRule::Fixed, 0, branches)?;
            Ok::<f64, Error>(residual_factors(tau)?.0.powi(2))
        };
        assert!((branch(&weights, 8)? - 0.4).abs() < 1e-12);
        assert!((branch(&weights, 128)? - 0.1).abs() < 1e-12);
        Ok(())
    }
}
