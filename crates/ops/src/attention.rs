//! Scaled dot-product attention.

use crate::dropout::dropout;
use crate::scales::{log_mix, positive, probability};
use crate::{Error, Parametrisation, Result, Scales};
use onesigma_graph::expr::Term;
use onesigma_graph::{Graph, Op, ValueId};

/// Options of [`attention`].
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Attention {
    /// Query `i` sees keys `0 ..= i + keys - seq` only.
    pub causal: bool,
    /// Factor `m` on the logits.
    pub mult: f64,
    /// Probability with which attention weights are dropped.
    pub dropout: f64,
    /// Whether the dropout is active.
    pub training: bool,
}

impl Default for Attention {
    /// Causal, `mult` 1, no dropout.
    fn default() -> Self {
        Self { causal: true, mult: 1.0, dropout: 0.0, training: true }
    }
}

impl Attention {
    /// Factor on `q k^T`: `m/d` in u-muP, where `q` and `k` become correlated as training goes on
    /// (arXiv 2407.17465), else `m/sqrt(d)`; `d` is the head size.
    pub fn logit_scale(&self, p: Parametrisation, d: usize) -> f64 {
        self.mult * (d.max(1) as f64).powf(-p.scheme().logit_power)
    }

    /// Scale of the output and of all three gradients, for `s` keys and head size `d`: with the
    /// initial deviation of the logits `t`, `a = 1/(1 + 4/t^2)`, `sqrt(1-p) / log_mix(a, 1,
    /// sqrt(L/s))`, `L = ln s` if causal, else 1. Source: unit-scaling 0.3.5
    /// `scaled_dot_product_attention`, for logits times `m/d`, whose `t` is `m/sqrt(d)`.
    ///
    /// For one causal key `ln s` is 0 and the formula gives infinity; attention to one key is the
    /// identity, so its scale is 1 without dropout (our choice, as the reference leaves it open).
    ///
    /// # Errors
    /// [`Error::Argument`] for `mult` or `dropout` outside their range.
    pub fn scales(&self, p: Parametrisation, s: usize, d: usize) -> Result<Scales> {
        positive("attention", "mult", self.mult)?;
        probability("attention", "dropout", self.dropout)?;
        let deviation = self.logit_scale(p, d) * (d.max(1) as f64).sqrt();
        let a = 1.0 / (1.0 + 4.0 / (deviation * deviation));
        let keys = s.max(1) as f64;
        let uniform = match (s, self.causal) {
            (0 | 1, _) => 1.0,
            (_, true) => (keys.ln() / keys).sqrt(),
            (_, false) => keys.recip().sqrt(),
        };
        let scale = (1.0 - self.dropout).sqrt() / log_mix(a, 1.0, uniform);
        Ok(Scales { alpha: scale, beta: vec![scale; 3] })
    }
}

/// `alpha softmax(logit_scale q k^T) v` per head: `q [batch, seq, heads, d]`, `k, v [batch, keys,
/// kv_heads, d]`, result as `q`. Scales: [`Attention::scales`]; regular: 1. With active dropout
/// the op is built from products and a softmax, otherwise it is one fused op.
///
/// # Errors
/// [`Error::Graph`] for shapes that do not fit; [`Error::Argument`] for options outside their
/// range, or dropout with grouped key-value heads.
pub fn attention(
    graph: &mut Graph,
    p: Parametrisation,
    [q, k, v]: [ValueId; 3],
    options: Attention,
) -> Result<ValueId> {
    let d = graph.shape(q).last();
    let keys = graph.shape(k).dims().get(1).copied().unwrap_or(1);
    let checked = options.scales(p, keys, d)?;
    let scales = p.scheme().activation.choose(|| Ok(checked))?;
    let logit_scale = options.logit_scale(p, d);
    if options.dropout > 0.0 && options.training {
        return with_dropout(graph, [q, k, v], options, logit_scale, &scales);
    }
    scaled_attention(graph, [q, k, v], options.causal, logit_scale, &scales)
}

/// The fused op with given scales.
pub(crate) fn scaled_attention(
    graph: &mut Graph,
    qkv: [ValueId; 3],
    causal: bool,
    logit_scale: f64,
    scales: &Scales,
) -> Result<ValueId> {
    // The second result, the log-sum-exp, is a statistic and never scaled.
    Ok(graph
        .op(Op::Attention { causal, logit_scale }, &qkv)
        .alphas(vec![scales.alpha, 1.0])
        .beta(&scales.beta)
        .one()?)
}

/// The same function from parts. Only the last product is scaled: its gradients for weights and
/// values carry `beta`, everything before has its true gradient.
fn with_dropout(
    graph: &mut Graph,
    qkv: [ValueId; 3],
    options: Attention,
    logit_scale: f64,
    scales: &Scales,
) -> Result<ValueId> {
    let (q, k) = (graph.shape(qkv[0]).dims(), graph.shape(qkv[1]).dims());
    let [(_, seq, heads), (_, keys, kv_heads)] = [q, k].map(|dims| match *dims {
        [batch, seq, heads, _] => (batch, seq, heads),
        _ => (0, 0, 0),
    });
    if heads != kv_heads || (options.causal && keys < seq) {
        return Err(Error::Argument {
            op: "attention",
            argument: "dropout",
            found: format!("{} with {kv_heads} key-value heads, {keys} keys", options.dropout),
            expected: format!("{heads} key-value heads and at least {seq} keys, or dropout 0"),
        });
    }
    let mut by_head = Vec::with_capacity(3);
    for operand in qkv {
        by_head.push(graph.permute(operand, &[0, 2, 1, 3])?); // (B, H, T, d)
    }
    let product = Op::MatMul { transpose_left: false, transpose_right: true };
    let mut logits = graph
        .op(product, &by_head[..2])
        .alpha(logit_scale)
        .beta(&[logit_scale; 2])
        .named("logits")
        .one()?; // (B, H, T, S)
    if options.causal {
        let offset = (keys - seq) as f64;
        logits = graph
            .map(&[logits], |x| {
                let (query, key) = (Term::index(2) + offset, Term::index(3));
                key.less_equal(query).select(x[0].clone(), MASKED)
            })?
            .named("mask")
            .one()?;
    }
    let weights = graph.op(Op::Softmax { mult: 1.0 }, &[logits]).one()?;
    let weights = dropout(graph, Parametrisation::Regular, weights, options.dropout, true)?;
    let y = graph
        .matmul(weights, by_head[2])
        .alpha(scales.alpha)
        .beta(&[scales.beta(0), scales.beta(2)])
        .one()?; // (B, H, T, d)
    Ok(graph.permute(y, &[0, 2, 1, 3])?)
}

/// A logit that no softmax sees, within the range of F16.
const MASKED: f64 = -60000.0;
