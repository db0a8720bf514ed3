//! Attention and its gradients.
//!
//! With logits that are normal and independent from key to key, a row of weights `p` is
//! characterised by how much of two rows lies on the same keys, `E[sum_j p_j p'_j]`: its own
//! participation, or the overlap of two rows, which for different queries counts the keys that
//! both see. Outputs and gradients are sums over pairs of keys, of what the pairs share: all of it
//! on one key, something on two keys with equal tokens, less on others. The rows of the logits'
//! gradient sum to zero.

use super::law::Law;
use super::moments::{Axes, Moments, TOKEN, Tokens};
use super::rules::Rule;
use super::softmax::{log_sum_exp, overlap, participation};

const BATCH: Axes = 0b0001;
const SEQ: Axes = 0b0010;
const HEAD: Axes = 0b0100;
const LANE: Axes = 0b1000;

/// A second moment over pairs of keys: at one position and at two, each for equal tokens and for
/// others.
#[derive(Clone, Copy, Debug)]
struct OverKeys {
    one: [f64; 2],
    apart: [f64; 2],
    /// Probability of equal tokens at one position (1 within a sequence), and at two.
    equal: [f64; 2],
}

impl OverKeys {
    fn map(self, by: Self, f: impl Fn(f64, f64) -> f64) -> Self {
        let both = |a: [f64; 2], b: [f64; 2]| [f(a[0], b[0]), f(a[1], b[1])];
        Self { one: both(self.one, by.one), apart: both(self.apart, by.apart), ..self }
    }

    /// Sum over pairs of keys with weights of which a share `overlap` is at one position.
    fn sum(self, overlap: f64) -> f64 {
        overlap * self.mean_one() + (1.0 - overlap) * self.mean_apart()
    }

    fn mean_one(self) -> f64 {
        self.equal[0] * self.one[0] + (1.0 - self.equal[0]) * self.one[1]
    }

    fn mean_apart(self) -> f64 {
        self.equal[1] * self.apart[0] + (1.0 - self.equal[1]) * self.apart[1]
    }

    /// Without the mean over the keys.
    fn centred(self, overlap: f64) -> Self {
        let mean = self.sum(overlap);
        self.map(self, |own, _| own - mean)
    }

    /// What one pair of keys has of the sum: at one position or two, with equal tokens or not.
    fn of_pair(self, axes: Axes, overlap: f64, keys: f64) -> f64 {
        let other = usize::from(axes & TOKEN != 0);
        match axes & SEQ {
            0 => overlap * self.one[other],
            _ => (1.0 - overlap) * self.apart[other] / (keys - 1.0).max(1.0),
        }
    }
}

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
    /// The text along the positions.
    tokens: Option<Tokens>,
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
        let tokens = Tokens::joined(q.tokens(), Tokens::joined(k.tokens(), v.tokens()));
        let mut view = Self {
            q,
            k,
            v,
            scale,
            seq: seq as f64,
            keys: keys as f64,
            group: q.dims()[2] as f64 / k.dims()[2] as f64,
            tokens: tokens.filter(|tokens| tokens.axes & SEQ != 0),
            own: Vec::new(),
            seen,
            sigma: 0.0,
        };
        view.sigma = view.logit_pair(0).max(0.0).sqrt();
        view.own = rows(&view.seen, view.sigma);
        Some(view)
    }

    /// Probability that two positions hold equal tokens.
    fn collision(&self) -> f64 {
        self.tokens.map_or(0.0, |tokens| tokens.collision)
    }

    /// Pairs of keys or values for rows of queries that differ in batch and head.
    fn over_keys(&self, operand: &Moments, rows: Axes) -> OverKeys {
        let pair = |axes| operand.pair_under(self.tokens, axes);
        let in_batch = if rows & BATCH == 0 { 1.0 } else { self.collision() };
        OverKeys {
            one: [pair(rows), pair(rows | TOKEN)],
            apart: [pair(rows | SEQ), pair(rows | SEQ | TOKEN)],
            equal: [in_batch, self.collision()],
        }
    }

    /// `E[(a . b)(a' . b')]` over the lanes, for `a` by `rows` and `b` by pairs of keys.
    fn inner(&self, a: &Moments, rows: Axes, b: &Moments) -> OverKeys {
        let lanes = a.extent(3);
        let pair = |axes| a.pair_under(self.tokens, axes);
        let (own, cross) = (pair(rows & !LANE), pair(rows | LANE));
        let (same, apart) = (self.over_keys(b, kv(rows)), self.over_keys(b, kv(rows) | LANE));
        same.map(apart, |same, apart| lanes * (own * same + (lanes - 1.0) * cross * apart))
    }

    /// Second moment of the logits of rows that differ in batch, query or head, without what their
    /// keys share.
    fn logit_pair(&self, rows: Axes) -> f64 {
        let logits = self.inner(self.q, rows, self.k);
        self.scale * self.scale * (logits.mean_one() - logits.mean_apart())
    }

    /// Correlation of the logits of two rows.
    fn correlation(&self, rows: Axes) -> f64 {
        let own = self.logit_pair(0);
        if own > 0.0 { self.logit_pair(rows) / own } else { 1.0 }
    }

    /// Mean of `f(overlap)` over the queries, or over pairs of different ones: `E[sum_j p p']` of
    /// rows that differ as `rows` says.
    fn over_rows(&self, rows: Axes, f: impl Fn(f64) -> f64) -> f64 {
        let apart = rows & (BATCH | SEQ | HEAD);
        let r = self.correlation(rows & !LANE);
        let each = self.seen.iter().zip(&self.own).map(|(&seen, &own)| {
            if apart == 0 { own } else { overlap(seen.max(1) as f64, own, r) }
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
        Moments::new(self.q.dims(), self.v.mean(), law, self.tokens, |axes| {
            self.by_head(axes, |axes, others| {
                let values = self.over_keys(self.v, kv(others) | others & LANE);
                self.over_rows(axes, |p| values.sum(p))
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
        Moments::new(&shape, mean, Law::of_values(each), None, |axes| {
            // Other batches and heads see the same number of keys.
            if axes & 0b100 == 0 { square } else { mean * mean }
        })
    }

    /// Gradients of queries, keys and values for the output's gradient.
    pub(crate) fn gradients(&self, dy: &Moments) -> Vec<Option<Moments>> {
        // Pairs of the weights' gradient, d_weights = dy . v.
        let d_weights = |rows: Axes| self.inner(dy, rows & !LANE, self.v);
        let square = self.scale * self.scale;
        let law = Law::of_deviations(&self.deviations(|p| p * (1.0 - p)));
        let dq = Moments::new(self.q.dims(), 0.0, law, self.tokens, |axes| {
            self.by_head(axes, |axes, others| {
                let own = d_weights(axes);
                let keys = self.over_keys(self.k, kv(others) | others & LANE);
                square
                    * self
                        .over_rows(axes, |p| own.centred(p).map(keys, |own, key| own * key).sum(p))
            })
        });
        let law = self.key_law();
        let dk = Moments::new(self.k.dims(), 0.0, law.clone(), self.tokens, |axes| {
            let sum = self.over_queries(axes, |rows, lane| {
                let own = d_weights(rows);
                let queries = self.q.pair_under(self.tokens, rows | lane);
                self.over_rows(rows, |p| own.centred(p).of_pair(axes, p, self.keys)) * queries
            });
            square * sum / self.keys
        });
        let mean = dy.mean() * self.group * self.seq / self.keys;
        let dv = Moments::new(self.v.dims(), mean, law, self.tokens, |axes| {
            let all = OverKeys { one: [1.0; 2], apart: [1.0; 2], equal: [1.0; 2] };
            let sum = self.over_queries(axes, |rows, lane| {
                let weights = self.over_rows(rows, |p| all.of_pair(axes, p, self.keys));
                weights * dy.pair_under(self.tokens, rows | lane)
            });
            sum / self.keys
        });
        vec![dq, dk, dv]
    }

    /// Sum over pairs of queries of the group of one key-value head, by the axes in which the
    /// pairs differ, for gradients of keys and values that differ in `axes`.
    fn over_queries(&self, axes: Axes, f: impl Fn(Axes, Axes) -> f64) -> f64 {
        let (rows, lane) = (axes & (BATCH | HEAD), axes & LANE);
        let by_token = |rows: Axes| Tokens::mean(self.tokens, rows, |rows| f(rows, lane));
        let positions =
            |rows: Axes| self.seq * (by_token(rows) + (self.seq - 1.0) * by_token(rows | SEQ));
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
