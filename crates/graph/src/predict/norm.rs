//! Norms over the last axis and their gradients.

use super::law::Law;
use super::moments::{Axes, Moments, Tokens};
use super::rules::Rule;

/// What a norm does to the rows of its operand.
struct Rows<'a> {
    x: &'a Moments,
    last: Axes,
    centred: bool,
    /// The text that sets of axes speak of.
    tokens: Option<Tokens>,
    /// `1 / sqrt(mean square + eps)`.
    inverse: f64,
}

impl<'a> Rows<'a> {
    fn new(x: &'a Moments, eps: f64, centred: bool, tokens: Option<Tokens>) -> Option<Self> {
        let last = 1 << x.dims().len().checked_sub(1)?;
        let mut rows = Self { x, last, centred, tokens, inverse: 1.0 };
        rows.inverse = (rows.centre(x, 0) + eps).max(f64::MIN_POSITIVE).sqrt().recip();
        Some(rows)
    }

    /// The pair of `moments` without each row's mean, if the norm is centred.
    fn centre(&self, moments: &Moments, axes: Axes) -> f64 {
        let pair = |axes| moments.pair_under(self.tokens, axes);
        if !self.centred {
            return pair(axes);
        }
        let n = moments.extent(moments.dims().len() - 1);
        let rows = axes & !self.last;
        let own = pair(rows) - pair(rows | self.last);
        if axes & self.last == 0 { own * (1.0 - 1.0 / n) } else { -own / n }
    }

    fn mean(&self) -> f64 {
        if self.centred { 0.0 } else { self.x.mean() * self.inverse }
    }

    /// Pairs of the normalised rows.
    fn normal(&self, axes: Axes) -> f64 {
        self.centre(self.x, axes) * self.inverse * self.inverse
    }
}

/// `(x - mean) / sigma * weight + bias`.
pub(crate) fn norm(rule: &Rule<'_>, eps: f64, centred: bool) -> Option<Moments> {
    let x = rule.x(0)?;
    let rows = Rows::new(x, eps, centred, x.tokens())?;
    let given = rule.node.inputs.len();
    let weight = if given > 1 { Some(rule.x(1)?) } else { None };
    let bias = if given > 2 { Some(rule.x(2)?) } else { None };
    let dims = x.dims();
    let weight_mean = weight.map_or(1.0, Moments::mean);
    let bias_mean = bias.map_or(0.0, Moments::mean);
    let mean = rows.mean() * weight_mean;
    Moments::new(dims, mean + bias_mean, Law::Normal, x.tokens(), |axes| {
        let scale = weight.map_or(1.0, |weight| weight.broadcast_pair(dims, x.tokens(), axes));
        let shift = bias.map_or(0.0, |bias| bias.broadcast_pair(dims, x.tokens(), axes));
        rows.normal(axes) * scale + shift + 2.0 * mean * bias_mean
    })
}

/// Gradients for the operand and for each parameter that is given.
///
/// With `u = weight dy`, `dx = (u - x^ mean(u x^) - mean(u)) / sigma`: what `u` has along `x^`, and
/// in a centred norm along the ones, is taken away.
pub(crate) fn norm_grad(rule: &Rule<'_>, eps: f64, centred: bool) -> Option<Vec<Option<Moments>>> {
    let (x, dy) = (rule.x(0)?, rule.x(1)?);
    let tokens = Tokens::joined(x.tokens(), dy.tokens());
    let rows = Rows::new(x, eps, centred, tokens)?;
    let parameters = rule.node.inputs.len() - 2;
    let weight = if parameters > 0 { Some(rule.x(2)?) } else { None };
    let dims = x.dims();
    let scale = |axes: Axes| weight.map_or(1.0, |weight| weight.broadcast_pair(dims, tokens, axes));
    let mean = weight.map_or(1.0, Moments::mean) * dy.mean();
    let upstream = Moments::new(dims, mean, dy.law().clone(), tokens, |axes| {
        dy.pair_under(tokens, axes) * scale(axes)
    })?;
    let n = x.extent(dims.len() - 1);
    let last = rows.last;
    let dx = Moments::new(
        dims,
        if centred { 0.0 } else { upstream.mean() * rows.inverse },
        upstream.law().clone(),
        tokens,
        |axes| {
            // E[mean(u x^) mean(u' x^')] of two rows.
            let apart = axes & !last;
            let along = (rows.centre(&upstream, apart) * rows.normal(apart)
                + (n - 1.0) * rows.centre(&upstream, apart | last) * rows.normal(apart | last))
                / n;
            (rows.centre(&upstream, axes) - along * rows.normal(axes)) * rows.inverse.powi(2)
        },
    );
    let sum: Vec<usize> = (0..dims.len() - 1).collect();
    let mut results = vec![dx];
    if parameters > 0 {
        let product = Moments::new(dims, dy.mean() * rows.mean(), Law::Normal, tokens, |axes| {
            dy.pair_under(tokens, axes) * rows.normal(axes)
        })?;
        results.push(product.summed(&sum, false));
    }
    if parameters > 1 {
        results.push(dy.summed(&sum, false));
    }
    Some(results)
}
