//! Attention and its gradients.
//!
//! With logits that are normal and independent from key to key, a row of weights `p` is
//! characterised by how much of two rows lies on the same keys, `E[sum_j p_j p'_j]`: its own
//! participation, or the overlap of two rows, which for different queries counts the keys that
//! both see. Outputs and gradients are sums over keys of independent terms, and the rows of the
//! logits' gradient sum to zero, so that only what keys do not share is left.

use super::law::Law;
use super::moments::{Axes, Moments};
use super::rules::Rule;
use super::softmax::{log_sum_exp, overlap, participation};

const BATCH: Axes = 0b0001;
const SEQ: Axes = 0b0010;
const HEAD: Axes = 0b0100;
const LANE: Axes = 0b1000;

/// An attention op with the statistics of its weights. Axes are those of the operands: batch,
/// position, head, lane.
pub(crate) struct View<'a> {
    q: &'a Moments,
    k: &'a Moments,
    v: &'a Moments,
    scale: f64,
    seq: f64,
    keys: f64,
    /// Query heads that read one key-value head.
    group: f64,
    /// Keys that each query sees.
    seen: Vec<usize>,
    /// `E[sum p^2]` of each query's row.
    own: Vec<f64>,
    /// Standard deviation of the logits within a row.
    sigma: f64,
}

impl<'a> View<'a> {
    pub(crate) fn new(rule: &'a Rule<'a>, causal: bool, scale: f64) -> Option<Self> {
        let (q, k, v) = (rule.x(0)?, rule.x(1)?, rule.x(2)?);
        let (seq, keys) = (q.dims()[1], k.dims()[1]);
        let seen: Vec<usize> = (0..seq)
            .map(|query| if causal { (query + 1 + keys).saturating_sub(seq) } else { keys })
            .collect();
        let mut view = Self {
            q,
            k,
            v,
            scale,
            seq: seq as f64,
            keys: keys as f64,
            group: q.dims()[2] as f64 / k.dims()[2] as f64,
            own: Vec::new(),
            seen,
            sigma: 0.0,
        };
        view.sigma = view.logit_pair(0).max(0.0).sqrt();
        view.own = rows(&view.seen, view.sigma);
        Some(view)
    }

    /// Second moment of the logits of rows that differ in batch, query or head, without what their
    /// keys share.
    fn logit_pair(&self, rows: Axes) -> f64 {
        let product = |keys_differ: bool| self.inner(self.q, rows, self.k, kv(rows), keys_differ);
        self.scale * self.scale * (product(false) - product(true))
    }

    /// `E[(a . b)(a' . b')]` over the lanes, for `a` by `rows` and `b` by `others`, whose position
    /// differs or not.
    fn inner(
        &self,
        a: &Moments,
        rows: Axes,
        b: &Moments,
        others: Axes,
        positions_differ: bool,
    ) -> f64 {
        let lanes = a.extent(3);
        let others = others | if positions_differ { SEQ } else { 0 };
        lanes * a.pair(rows) * b.pair(others)
            + lanes * (lanes - 1.0) * a.pair(rows | LANE) * b.pair(others | LANE)
    }

    /// Correlation of the logits of two rows.
    fn correlation(&self, rows: Axes) -> f64 {
        let own = self.logit_pair(0);
        if own > 0.0 { self.logit_pair(rows) / own } else { 1.0 }
    }

    /// Mean of `f(overlap)` over the queries, or over pairs of different ones: `E[sum_j p p']` of
    /// rows that differ as `rows` says.
    fn over_rows(&self, rows: Axes, f: impl Fn(f64) -> f64) -> f64 {
        let r = self.correlation(rows);
        let each = self.seen.iter().zip(&self.own).map(|(&seen, &own)| {
            let n = seen.max(1) as f64;
            if rows & !LANE == 0 { own } else { overlap(n, own, r) }
        });
        if rows & SEQ == 0 || self.seen.len() < 2 {
            return each.map(f).sum::<f64>() / self.seq;
        }
        // Of two queries, the one that sees more decides: weights 2i/(T(T-1)) for query i.
        let pairs = self.seq * (self.seq - 1.0);
        each.enumerate().map(|(query, overlap)| 2.0 * query as f64 * f(overlap)).sum::<f64>()
            / pairs
    }

    /// `softmax(..) v`.
    pub(crate) fn output(&self) -> Option<Moments> {
        let law = Law::of_deviations(&self.deviations(|p| p));
        Moments::new(self.q.dims(), self.v.mean(), law, |axes| {
            self.by_head(axes, |axes, v| {
                let v = v & !SEQ;
                self.over_rows(axes & !LANE, |p| {
                    p * self.v.pair(v) + (1.0 - p) * self.v.pair(v | SEQ)
                })
            })
        })
    }

    /// Calls `f` with the axes of queries and of key-value heads that differ; heads of one group
    /// share their keys and values.
    fn by_head(&self, axes: Axes, f: impl Fn(Axes, Axes) -> f64) -> f64 {
        let heads = self.q.extent(2);
        if axes & HEAD == 0 || self.group < 1.5 || heads < 1.5 {
            return f(axes, axes);
        }
        let within = (self.group - 1.0) / (heads - 1.0);
        within * f(axes, axes & !HEAD) + (1.0 - within) * f(axes, axes)
    }

    /// Deviations of rows whose energy is `f` of their participation.
    fn deviations(&self, f: impl Fn(f64) -> f64) -> Vec<(f64, f64)> {
        self.own.iter().map(|&own| (1.0 / self.seq, f(own).max(0.0).sqrt())).collect()
    }

    /// `ln sum e^logits`, `[batch, heads, seq]`.
    pub(crate) fn log_sum_exp(&self) -> Option<Moments> {
        let dims = self.q.dims();
        let shape = [dims[0], dims[2], dims[1]];
        let values: Vec<f64> =
            sparse(&self.seen).iter().map(|&n| log_sum_exp(n.max(1), self.sigma)).collect();
        let each = spread(&self.seen, &values);
        let mean = each.iter().sum::<f64>() / self.seq;
        let square = each.iter().map(|x| x * x).sum::<f64>() / self.seq;
        Moments::new(&shape, mean, Law::of_values(each), |axes| {
            // Other batches and heads see the same number of keys.
            if axes & 0b100 == 0 { square } else { mean * mean }
        })
    }

    /// Gradients of queries, keys and values for the output's gradient.
    pub(crate) fn gradients(&self, dy: &Moments) -> Vec<Option<Moments>> {
        // Second moment of d_weights = dy . v, without what keys share.
        let rest = |rows: Axes| {
            self.inner(dy, rows, self.v, kv(rows), false)
                - self.inner(dy, rows, self.v, kv(rows), true)
        };
        // E[sum_j dz dz'] of two rows of the logits' gradient.
        let energy = |rows: Axes| rest(rows).max(0.0) * self.over_rows(rows, |p| p * (1.0 - p));
        let square = self.scale * self.scale;
        let law = Law::of_deviations(&self.deviations(|p| p * (1.0 - p)));
        let dq = Moments::new(self.q.dims(), 0.0, law, |axes| {
            self.by_head(axes, |axes, k| {
                let k = k & !SEQ;
                let own = self.k.pair(k) - self.k.pair(k | SEQ);
                square * energy(axes & !LANE) * own
            })
        });
        let law = self.key_law();
        let dk = Moments::new(self.k.dims(), 0.0, law.clone(), |axes| {
            let sum = self.over_queries(axes, |rows, lane| energy(rows) * self.q.pair(rows | lane));
            // Rows of the logits' gradient sum to zero.
            let other = if axes & SEQ == 0 { 1.0 } else { -1.0 / (self.keys - 1.0).max(1.0) };
            square * other * sum / self.keys
        });
        let dv = Moments::new(
            self.v.dims(),
            dy.mean() * self.group * self.seq / self.keys,
            law,
            |axes| {
                let other = axes & SEQ != 0;
                let sum = self.over_queries(axes, |rows, lane| {
                    let on_same = self.over_rows(rows, |p| p);
                    let weight =
                        if other { (1.0 - on_same) / (self.keys - 1.0).max(1.0) } else { on_same };
                    weight * dy.pair(rows | lane)
                });
                sum / self.keys
            },
        );
        vec![dq, dk, dv]
    }

    /// Sum over pairs of queries of the group of one key-value head, by the axes in which the
    /// pairs differ, for gradients of keys and values that differ in `axes`.
    fn over_queries(&self, axes: Axes, f: impl Fn(Axes, Axes) -> f64) -> f64 {
        let (rows, lane) = (axes & (BATCH | HEAD), axes & LANE);
        let positions =
            |rows: Axes| self.seq * (f(rows, lane) + (self.seq - 1.0) * f(rows | SEQ, lane));
        if rows & HEAD != 0 {
            return self.group * self.group * positions(rows);
        }
        self.group * (positions(rows) + (self.group - 1.0) * positions(rows | HEAD))
    }

    /// Keys that more queries see have more gradient: key `j` gets `p^2` of all queries after it.
    fn key_law(&self) -> Law {
        let mut sum = 0.0;
        let mut deviations = Vec::with_capacity(self.seen.len());
        let mut next = self.seen.len();
        let keys = self.keys as usize;
        let step = (keys / 256).max(1);
        for key in (0..keys).rev() {
            while next > 0 && self.seen[next - 1] > key {
                next -= 1;
                sum += self.own[next] / self.seen[next].max(1) as f64;
            }
            if key % step == 0 {
                deviations.push((1.0, f64::sqrt(sum)));
            }
        }
        Law::of_deviations(&deviations)
    }
}

/// Axes of keys and values for rows of queries: batch and head, not the position.
fn kv(rows: Axes) -> Axes {
    rows & (BATCH | HEAD)
}

/// Participation of each row; a few row lengths are computed and the rest interpolated.
fn rows(seen: &[usize], sigma: f64) -> Vec<f64> {
    let counts = sparse(seen);
    // n P changes slowly with n.
    let scaled: Vec<f64> =
        participation(&counts, sigma).iter().zip(&counts).map(|(p, &n)| p * n as f64).collect();
    spread(seen, &scaled).iter().zip(seen).map(|(p, &n)| p / n.max(1) as f64).collect()
}

/// The row lengths that are computed: all up to 16, then in steps of an eighth.
fn sparse(seen: &[usize]) -> Vec<usize> {
    let (low, high) =
        (seen.iter().copied().min().unwrap_or(1), seen.iter().copied().max().unwrap_or(1));
    let mut counts = Vec::new();
    let mut n = low.max(1);
    while n < high {
        counts.push(n);
        n += (n / 8).max(1);
    }
    counts.push(high.max(1));
    counts
}

/// Values at the lengths of [`sparse`], interpolated to every row.
fn spread(seen: &[usize], values: &[f64]) -> Vec<f64> {
    let counts = sparse(seen);
    seen.iter()
        .map(|&n| {
            let next = counts.partition_point(|&count| count < n);
            let high = next.min(counts.len() - 1);
            let low = high.saturating_sub(usize::from(next > 0));
            let (from, to) = (counts[low] as f64, counts[high] as f64);
            let part = if to > from { (n as f64 - from) / (to - from) } else { 0.0 };
            values[low] + part.clamp(0.0, 1.0) * (values[high] - values[low])
        })
        .collect()
}
