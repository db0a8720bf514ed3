//! Every instruction set gives the same numbers up to rounding.
//!
//! One test in a file of its own, because the instruction set is a setting of the process.

mod common;

use common::{Tensor, assert_all_close};
use onesigma_backend_cpu::Isa;
use onesigma_backend_cpu::adamw::{AdamW, AdamWStep};
use onesigma_backend_cpu::attention::{Attention, AttentionGradients};
use onesigma_backend_cpu::norm::{Norm, NormGradients};
use onesigma_backend_cpu::softmax::{Classification, softmax};
use onesigma_format::Format;

const FORMAT: Format = Format::F16;
const LEN: usize = 2 * 40 * 2 * 16;

/// Results of the kernels on fixed operands.
fn results() -> Vec<Tensor> {
    let [q, k, v, dout] = [1, 2, 3, 4].map(|seed| Tensor::normal(FORMAT, LEN, 1.0, seed));
    let mut out: Vec<Tensor> = (0..8).map(|_| Tensor::room(Format::F32, LEN)).collect();
    let mut lse = Tensor::room(Format::F32, 2 * 2 * 40);
    let a = Attention {
        batch: 2,
        queries: 40,
        keys: 40,
        heads: 2,
        kv_heads: 2,
        width: 16,
        causal: true,
        logit_scale: 0.25,
    };
    let [o, dq, dk, dv, y, dx, p, dl] = &mut out[..] else { unreachable!("eight results") };
    a.forward(q.input(), k.input(), v.input(), None, 1.0, o.output(), lse.output()).unwrap();
    let gradients =
        AttentionGradients { q: (dq.output(), 1.0), k: (dk.output(), 1.0), v: (dv.output(), 1.0) };
    let forward = (o.input(), 1.0);
    a.backward(
        q.input(),
        k.input(),
        v.input(),
        forward,
        lse.input(),
        dout.input(),
        None,
        gradients,
    )
    .unwrap();
    let norm = Norm { width: 80, eps: 1e-5, centred: true };
    norm.forward(q.input(), None, None, 1.0, y.output()).unwrap();
    let mut dweight = Tensor::room(Format::F32, 80);
    let gradients = NormGradients {
        x: Some((dx.output(), 1.0)),
        weight: Some((dweight.output(), 1.0)),
        bias: None,
    };
    norm.backward(q.input(), None, dout.input(), gradients).unwrap();
    softmax(k.input(), 80, 1.5, 1.0, p.output()).unwrap();
    let targets = vec![0; LEN / 80 * 4];
    let (logits, mask) = (v.input(), None);
    let problem = Classification { logits, classes: 80, mult: 1.0, targets: &targets, mask };
    problem.gradient(1.0, dl.output()).unwrap();
    let [mut w, mut m] = [5, 6].map(|seed| Tensor::normal(Format::F32, LEN, 1.0, seed));
    let mut second = Tensor::from_f32(Format::F32, &[0.5; LEN]);
    let adam = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, lr_scale: 1.0 };
    let now = AdamWStep { lr: 0.1, step: 2.0, grad_factor: 1.0 };
    adam.update(now, w.output(), q.input(), m.output(), second.output()).unwrap();
    out.extend([lse, dweight, w, m, second]);
    out
}

#[test]
fn all_instruction_sets_agree() {
    let best = results();
    for isa in Isa::available() {
        assert_eq!(isa.limit(), isa);
        for (at, (found, best)) in results().iter().zip(&best).enumerate() {
            assert_all_close(&format!("result {at} on {isa:?}"), found, &best.read(), 5e-6);
        }
    }
}
