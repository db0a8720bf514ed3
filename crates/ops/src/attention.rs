//! Scaled dot-product attention.

use crate::dropout::dropout;
use crate::scales::{log_mix, positive, probability};
use crate::{Error, Parametrisation, Result, Scales};
use onesigma_graph::expr::Term;
use onesigma_graph::{Graph, Op, ValueId};

/// Options of [`attention`].
///
/// ```
/// use onesigma_ops::{Attention, Parametrisation};
///
/// let causal = Attention { causal: true, ..Attention::default() };
/// // Of 512 keys alike a query takes the mean, so that what it finds is small: the scale makes it 1.
/// let scales = causal.scales(Parametrisation::Unit, 512, 64)?;
/// assert!(scales.alpha > 1.0);
/// # Ok::<(), onesigma_ops::Error>(())
/// ```
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
    /// Number of keys whose scale is used, whatever the sequence; `None` for that of the sequence.
    pub scale_keys: Option<usize>,
}

impl Default for Attention {
    /// Causal, `mult` 1, no dropout.
    fn default() -> Self {
        Self { causal: true, mult: 1.0, dropout: 0.0, training: true, scale_keys: None }
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
/// range.
pub fn attention(
    graph: &mut Graph,
    p: Parametrisation,
    qkv: [ValueId; 3],
    options: Attention,
) -> Result<ValueId> {
    masked_attention(graph, p, qkv, None, options)
}

/// [`attention`] in which keys are hidden where `mask U32 [batch, keys]` is 0, as the padding of a
/// batch is. The scale is that of `keys` keys, however many are hidden.
///
/// # Errors
/// As [`attention`].
pub fn masked_attention(
    graph: &mut Graph,
    p: Parametrisation,
    [q, k, v]: [ValueId; 3],
    mask: Option<ValueId>,
    options: Attention,
) -> Result<ValueId> {
    let d = graph.shape(q).last();
    let keys = graph.shape(k).dims().get(1).copied().unwrap_or(1);
    let checked = options.scales(p, options.scale_keys.unwrap_or(keys), d)?;
    let scales = p.scheme().activation.choose(|| Ok(checked))?;
    let logit_scale = options.logit_scale(p, d);
    if options.dropout > 0.0 && options.training {
        return with_dropout(graph, [q, k, v], mask, options, logit_scale, &scales);
    }
    let mut operands = vec![q, k, v];
    operands.extend(mask);
    fused(graph, &operands, options.causal, logit_scale, &scales)
}

/// The fused op with given scales.
pub(crate) fn scaled_attention(
    graph: &mut Graph,
    qkv: [ValueId; 3],
    causal: bool,
    logit_scale: f64,
    scales: &Scales,
) -> Result<ValueId> {
    fused(graph, &qkv, causal, logit_scale, scales)
}

fn fused(
    graph: &mut Graph,
    operands: &[ValueId],
    causal: bool,
    logit_scale: f64,
    scales: &Scales,
) -> Result<ValueId> {
    // The second result, the log-sum-exp, is a statistic and never scaled.
    Ok(graph
        .op(Op::Attention { causal, logit_scale }, operands)
        .alphas(vec![scales.alpha, 1.0])
        .beta(&scales.beta)
        .one()?)
}

/// The same function from parts. Only the last product is scaled: its gradients for weights and
/// values carry `beta`, everything before has its true gradient. The query heads of one key-value
/// head are stacked into the rows of one product.
fn with_dropout(
    graph: &mut Graph,
    qkv: [ValueId; 3],
    mask: Option<ValueId>,
    options: Attention,
    logit_scale: f64,
    scales: &Scales,
) -> Result<ValueId> {
    let (q, k) = (graph.shape(qkv[0]).dims(), graph.shape(qkv[1]).dims());
    let (&[b, seq, heads, d], &[_, keys, kv_heads, _]) = (q, k) else {
        return Err(refused(graph, qkv, "q, k and v [batch, positions, heads, size]"));
    };
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) || (options.causal && keys < seq) {
        let expected = "heads a multiple of the key-value heads and, if causal, as many keys";
        return Err(refused(graph, qkv, expected));
    }
    let group = heads / kv_heads;
    // (B, T, H, d) to (B, N, G T, d), of which keys and values are the case G = 1.
    let stack = |graph: &mut Graph, x: ValueId, rows: usize, group: usize| -> Result<ValueId> {
        let split = graph.reshape(x, [b, rows, kv_heads, group, d])?;
        let ordered = graph.permute(split, &[0, 2, 3, 1, 4])?;
        Ok(graph.reshape(ordered, [b, kv_heads, group * rows, d])?)
    };
    let q = stack(graph, qkv[0], seq, group)?;
    let k = stack(graph, qkv[1], keys, 1)?;
    let v = stack(graph, qkv[2], keys, 1)?;
    let product = Op::MatMul { transpose_left: false, transpose_right: true };
    let logits = graph
        .op(product, &[q, k])
        .alpha(logit_scale)
        .beta(&[logit_scale; 2])
        .named("logits")
        .one()?; // (B, N, G T, S)
    let mut logits = graph.reshape(logits, [b, kv_heads, group, seq, keys])?;
    if options.causal {
        let offset = (keys - seq) as f64;
        logits = graph
            .map(&[logits], |x| {
                let (query, key) = (Term::index(3) + offset, Term::index(4));
                key.less_equal(query).select(x[0].clone(), MASKED)
            })?
            .named("mask")
            .one()?;
    }
    if let Some(mask) = mask {
        let mask = graph.reshape(mask, [b, 1, 1, 1, keys])?;
        logits = graph
            .map(&[logits, mask], |x| x[1].equal(0.0).select(MASKED, x[0].clone()))?
            .named("mask")
            .one()?;
    }
    let weights = graph.op(Op::Softmax { mult: 1.0 }, &[logits]).one()?;
    let weights = dropout(graph, Parametrisation::Regular, weights, options.dropout, true)?;
    let weights = graph.reshape(weights, [b, kv_heads, group * seq, keys])?;
    let y = graph
        .matmul(weights, v)
        .alpha(scales.alpha)
        .beta(&[scales.beta(0), scales.beta(2)])
        .one()?; // (B, N, G T, d)
    let y = graph.reshape(y, [b, kv_heads, group, seq, d])?;
    let y = graph.permute(y, &[0, 3, 1, 2, 4])?;
    Ok(graph.reshape(y, [b, seq, heads, d])?)
}

fn refused(graph: &Graph, qkv: [ValueId; 3], expected: &str) -> Error {
    let shapes = qkv.map(|x| graph.shape(x).to_string());
    Error::Argument {
        op: "attention",
        argument: "q, k, v",
        found: shapes.join(" and "),
        expected: expected.to_owned(),
    }
}

/// A logit that no softmax sees, within the range of F16.
const MASKED: f64 = -60000.0;
