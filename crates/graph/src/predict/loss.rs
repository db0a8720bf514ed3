//! Softmax and cross-entropy over the last axis, and their gradients.

use super::Ids;
use super::law::Law;
use super::moments::{Axes, Moments, TOKEN, Tokens};
use super::normal::{POINTS, Sequence, below, quantiles};
use super::softmax::{log_sum_exp, overlap, participation};
use crate::Shape;

/// Logits `mult x` of a softmax over the last axis.
struct Logits<'a> {
    x: &'a Moments,
    last: Axes,
    n: usize,
    /// Standard deviation within a row; what a row shares changes nothing.
    sigma: f64,
    /// `E[sum p^2]` of a row.
    participation: f64,
}

impl<'a> Logits<'a> {
    fn new(x: &'a Moments, mult: f64) -> Option<Self> {
        let n = *x.dims().last()?;
        let last = 1 << (x.dims().len() - 1);
        let sigma = mult.abs() * (x.pair(0) - x.mean_pair(last)).max(0.0).sqrt();
        Some(Self { x, last, n, sigma, participation: participation(&[n], sigma)[0] })
    }

    /// `E[sum p p']` of the rows that differ as `axes` says.
    fn overlap(&self, axes: Axes) -> f64 {
        let rows = axes & !self.last;
        let own = self.x.pair(0) - self.x.mean_pair(self.last);
        let shared = self.x.pair(rows) - self.x.pair(rows | self.last);
        let r = if own > 0.0 { shared / own } else { 1.0 };
        overlap(self.n as f64, self.participation, r)
    }

    /// Probabilities: `exp` of normal logits with the expected sum.
    fn probabilities(&self) -> impl Iterator<Item = f64> + '_ {
        let sum: f64 = quantiles().iter().map(|z| (self.sigma * z).exp()).sum();
        let mean = sum / quantiles().len() as f64 * self.n as f64;
        quantiles().iter().map(move |z| ((self.sigma * z).exp() / mean).min(1.0))
    }
}

/// `softmax(mult x)`.
pub(crate) fn softmax(x: &Moments, mult: f64) -> Option<Moments> {
    let logits = Logits::new(x, mult)?;
    let n = logits.n as f64;
    let law = Law::of_values(logits.probabilities().collect());
    Moments::new(x.dims(), 1.0 / n, law, x.tokens(), |axes| {
        let overlap = logits.overlap(axes);
        if axes & logits.last == 0 {
            return overlap / n;
        }
        // The probabilities of a row sum to one.
        (1.0 - overlap) / (n * (n - 1.0).max(1.0))
    })
}

/// `s (dy - sum(dy s))` for a softmax `s`.
///
/// Rows of `dy` count up to what they share; a share `P(1 - P)` of the rest is left, where
/// `P = sum s^2`: exact for any number of equal winners.
pub(crate) fn softmax_grad(s: &Moments, dy: &Moments) -> Option<Moments> {
    let n = *s.dims().last()? as f64;
    let last = 1 << (s.dims().len() - 1);
    // Elements of s times elements of dy.
    let sequence = Sequence::new(2);
    let draw = |moments: &Moments, point, axis| {
        let z = sequence.normal(point, axis);
        moments.element(z, || below(z))
    };
    let points = (0..POINTS).map(|point| draw(s, point, 0) * draw(dy, point, 1)).collect();
    let tokens = Tokens::joined(s.tokens(), dy.tokens());
    Moments::new(s.dims(), 0.0, Law::of_values(points), tokens, |axes| {
        let rows = axes & !last;
        let dy = |axes| dy.pair_under(tokens, axes);
        let own = (dy(rows) - dy(rows | last)).max(0.0);
        let overlap = (s.pair_under(tokens, rows) * n).clamp(0.0, 1.0);
        let pair = own * overlap * (1.0 - overlap) / n;
        if axes & last == 0 { pair } else { -pair / (n - 1.0).max(1.0) }
    })
}

/// Cross-entropy against targets that the logits know nothing of: `ln sum e^z - z`.
pub(crate) fn cross_entropy(x: &Moments, mult: f64, mean: bool) -> Option<Moments> {
    let logits = Logits::new(x, mult)?;
    let rows: usize = x.dims().iter().rev().skip(1).product();
    let loss = log_sum_exp(logits.n, logits.sigma);
    let total = if mean { loss } else { loss * rows as f64 };
    // One row's target logit has variance sigma^2; rows are taken as independent.
    let spread = logits.sigma / (rows as f64).sqrt() * total / loss.max(f64::MIN_POSITIVE);
    Moments::normal(&Shape::scalar(), total, spread)
}

/// `(softmax(mult x) - onehot) d_loss`, times the weight of a row.
pub(crate) fn cross_entropy_grad(
    x: &Moments,
    targets: &Ids,
    d_loss: &Moments,
    mult: f64,
    mean: bool,
) -> Option<Moments> {
    let logits = Logits::new(x, mult)?;
    let n = logits.n as f64;
    let rows: usize = x.dims().iter().rev().skip(1).product();
    let share = if mean { 1.0 / rows as f64 } else { 1.0 };
    // p at the other classes, p - 1 at the target.
    let count = quantiles().len() as f64;
    let points = logits
        .probabilities()
        .flat_map(|p| [(p, (1.0 - 1.0 / n) / count), (p - 1.0, 1.0 / (n * count))])
        .collect();
    let gradient = Moments::new(x.dims(), 0.0, Law::of_points(points), x.tokens(), |axes| {
        let apart = axes & !logits.last & !TOKEN;
        let target = if apart == 0 { 1.0 } else { targets.collision() };
        let pair = (logits.overlap(axes) - 2.0 / n + target) / n;
        // Each row sums to zero.
        if axes & logits.last == 0 { pair } else { -pair / (n - 1.0).max(1.0) }
    })?;
    Some(gradient.scaled(mult * share * d_loss.rms() * d_loss.mean().signum()))
}
