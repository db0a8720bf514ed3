//! Attention against a naive one in f64, with gradients from its formulas.

mod common;

use common::{Tensor, assert_all_close, tolerance};
use onesigma_backend_cpu::Error;
use onesigma_backend_cpu::attention::{Attention, AttentionGradients};
use onesigma_format::Format;

const CASES: [Attention; 6] = [
    case(1, 1, 1, 1, 1, 1, true),
    case(2, 5, 5, 2, 2, 3, true),
    case(1, 70, 70, 4, 2, 33, true),
    case(2, 3, 9, 4, 1, 8, true),
    case(1, 130, 67, 2, 2, 16, false),
    case(1, 200, 200, 1, 1, 64, true),
];

const fn case(
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    kv_heads: usize,
    width: usize,
    causal: bool,
) -> Attention {
    Attention { batch, queries, keys, heads, kv_heads, width, causal, logit_scale: 0.5 }
}

#[derive(Default)]
struct Expected {
    out: Vec<f64>,
    lse: Vec<f64>,
    dq: Vec<f64>,
    dk: Vec<f64>,
    dv: Vec<f64>,
}

/// Which keys of item are hidden in case `n`: none, a ragged end, holes, and all of one item.
fn mask(a: &Attention, n: usize) -> Option<Vec<u32>> {
    let hidden = |item: usize, key: usize| match n {
        1 => key > 0 && key + item + 1 >= a.keys - a.keys / 3,
        2 => (key + item).is_multiple_of(3),
        _ => item == 0,
    };
    let all = (0..a.batch).flat_map(|item| (0..a.keys).map(move |key| (item, key)));
    (n > 0).then(|| all.map(|(item, key)| u32::from(!hidden(item, key))).collect())
}

fn naive(
    a: &Attention,
    q: &[f64],
    k: &[f64],
    v: &[f64],
    mask: Option<&[u32]>,
    dout: &[f64],
) -> Expected {
    let mut e = Expected {
        out: vec![0.0; q.len()],
        lse: vec![0.0; a.batch * a.heads * a.queries],
        dq: vec![0.0; q.len()],
        dk: vec![0.0; k.len()],
        dv: vec![0.0; v.len()],
    };
    let scale = f64::from(a.logit_scale);
    for item in 0..a.batch {
        for head in 0..a.heads {
            let kv = head / (a.heads / a.kv_heads);
            for i in 0..a.queries {
                let seen = if a.causal { i + 1 + a.keys - a.queries } else { a.keys };
                let shown = |j: &usize| mask.is_none_or(|mask| mask[item * a.keys + j] != 0);
                let seen: Vec<usize> = (0..seen).filter(shown).collect();
                let at_q = ((item * a.queries + i) * a.heads + head) * a.width;
                let at_k = |j: usize| ((item * a.keys + j) * a.kv_heads + kv) * a.width;
                let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
                let row = &q[at_q..][..a.width];
                let logits: Vec<f64> =
                    seen.iter().map(|&j| scale * dot(row, &k[at_k(j)..][..a.width])).collect();
                let max = logits.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
                let sum: f64 = logits.iter().map(|l| (l - max).exp()).sum();
                e.lse[(item * a.heads + head) * a.queries + i] = max + sum.ln();
                let p: Vec<f64> = logits.iter().map(|l| (l - max).exp() / sum).collect();
                let up = &dout[at_q..][..a.width];
                let dp: Vec<f64> =
                    seen.iter().map(|&j| dot(up, &v[at_k(j)..][..a.width])).collect();
                let along = dot(&p, &dp);
                for (n, &j) in seen.iter().enumerate() {
                    let dl = p[n] * (dp[n] - along) * scale;
                    for c in 0..a.width {
                        e.out[at_q + c] += p[n] * v[at_k(j) + c];
                        e.dq[at_q + c] += dl * k[at_k(j) + c];
                        e.dk[at_k(j) + c] += dl * q[at_q + c];
                        e.dv[at_k(j) + c] += p[n] * dout[at_q + c];
                    }
                }
            }
        }
    }
    e
}

fn scaled(x: &[f64], scale: f64) -> Vec<f64> {
    x.iter().map(|x| x * scale).collect()
}

#[test]
fn forward_and_backward_agree_with_f64() {
    for format in [Format::F32, Format::BF16, Format::E4M3] {
        for (a, n) in CASES.iter().flat_map(|a| (0..4).map(move |n| (a, n))) {
            let mask = mask(a, n);
            let words =
                mask.as_ref().map(|mask| mask.iter().flat_map(|w| w.to_le_bytes()).collect());
            let words: Option<Vec<u8>> = words;
            let words = words.as_deref();
            let q_len = a.batch * a.queries * a.heads * a.width;
            let kv_len = a.batch * a.keys * a.kv_heads * a.width;
            let [q, dout] = [1, 2].map(|seed| Tensor::normal(format, q_len, 1.0, seed));
            let [k, v] = [3, 4].map(|seed| Tensor::normal(format, kv_len, 1.0, seed));
            let expected = naive(a, &q.values, &k.values, &v.values, mask.as_deref(), &dout.values);
            let mut out = Tensor::room(format, q_len);
            let mut lse = Tensor::room(Format::F32, expected.lse.len());
            a.forward(q.input(), k.input(), v.input(), words, 2.0, out.output(), lse.output())
                .unwrap();
            assert_all_close("out", &out, &scaled(&expected.out, 2.0), tolerance::ATTENTION);
            assert_all_close("lse", &lse, &expected.lse, tolerance::ATTENTION);

            let exact: Vec<f32> = expected.out.iter().map(|x| (2.0 * x) as f32).collect();
            let exact = Tensor::from_f32(Format::F32, &exact);
            let mut dq = Tensor::room(format, q_len);
            let [mut dk, mut dv] = [0, 1].map(|_| Tensor::room(Format::F32, kv_len));
            let gradients = AttentionGradients {
                q: (dq.output(), 0.5),
                k: (dk.output(), 0.25),
                v: (dv.output(), 3.0),
            };
            a.backward(
                q.input(),
                k.input(),
                v.input(),
                (exact.input(), 0.5),
                lse.input(),
                dout.input(),
                words,
                gradients,
            )
            .unwrap();
            if a.keys > 1 {
                assert_all_close("dq", &dq, &scaled(&expected.dq, 0.5), tolerance::ATTENTION);
                assert_all_close("dk", &dk, &scaled(&expected.dk, 0.25), tolerance::ATTENTION);
            }
            assert_all_close("dv", &dv, &scaled(&expected.dv, 3.0), tolerance::ATTENTION);
        }
    }
}

#[test]
fn heads_that_do_not_divide_are_refused() {
    let a = Attention { kv_heads: 3, ..CASES[2] };
    let x = Tensor::normal(Format::F32, 4, 1.0, 1);
    let [mut out, mut lse] = [0, 1].map(|_| Tensor::room(Format::F32, 4));
    let result = a.forward(x.input(), x.input(), x.input(), None, 1.0, out.output(), lse.output());
    assert!(matches!(result, Err(Error::Shape { kernel: "attention", .. })));
}
