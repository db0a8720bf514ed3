//! The decompositions of fused ops against plain loops in f64.

mod common;

use common::{Evaluation, Operand, TestResult, float, ids};
use onesigma_graph::{AdamWConfig, DType, Op, Shape};

fn run(
    op: Op,
    alphas: &[f64],
    operands: &[Operand],
) -> Result<Vec<Vec<f64>>, onesigma_backend::Error> {
    Evaluation::new(operands, |graph, x| graph.op(op, x).alphas(alphas.to_vec()).all())?.run()
}

fn assert_close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (at, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= 1e-12 * (1.0 + b.abs()), "element {at}: {a} against {b}");
    }
}

#[test]
fn softmax_is_stable_and_normalised() -> TestResult {
    let mut x = float(1, [2, 4]);
    x.data[3] = 1000.0;
    let y = run(Op::Softmax { mult: 2.0 }, &[3.0], &[x.clone()])?;
    let mut expected = Vec::new();
    for row in x.data.chunks(4) {
        let max = row.iter().fold(f64::NEG_INFINITY, |m, v| m.max(2.0 * v));
        let sum: f64 = row.iter().map(|v| (2.0 * v - max).exp()).sum();
        expected.extend(row.iter().map(|v| 3.0 * (2.0 * v - max).exp() / sum));
    }
    assert_close(&y[0], &expected);
    Ok(())
}

#[test]
fn norms_follow_their_formulas() -> TestResult {
    let operands = [float(1, [3, 5]), float(2, [5]), float(3, [5])];
    let layer = run(Op::LayerNorm { eps: 1e-3 }, &[0.5], &operands)?;
    let rms = run(Op::RmsNorm { eps: 1e-3 }, &[0.5], &operands[..2])?;
    let (mut expected_layer, mut expected_rms) = (Vec::new(), Vec::new());
    for row in operands[0].data.chunks(5) {
        let mean = row.iter().sum::<f64>() / 5.0;
        let var = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 5.0;
        let square = row.iter().map(|v| v * v).sum::<f64>() / 5.0;
        for (j, v) in row.iter().enumerate() {
            let (w, b) = (operands[1].data[j], operands[2].data[j]);
            expected_layer.push(0.5 * ((v - mean) / (var + 1e-3).sqrt() * w + b));
            expected_rms.push(0.5 * (v / (square + 1e-3).sqrt() * w));
        }
    }
    assert_close(&layer[0], &expected_layer);
    assert_close(&rms[0], &expected_rms);
    Ok(())
}

#[test]
fn attention_follows_its_formula() -> TestResult {
    for (b, s, t, h, n, causal) in
        [(2, 3, 3, 2, 2, true), (1, 2, 5, 4, 2, true), (1, 4, 3, 6, 2, false)]
    {
        let d = 3;
        let operands = [float(1, [b, s, h, d]), float(2, [b, t, n, d]), float(3, [b, t, n, d])];
        let hidden = ids([b, t], &(0..b * t).map(|n| u32::from(n % t != 1)).collect::<Vec<_>>());
        for masked in [false, true] {
            let mut operands = operands.to_vec();
            if masked {
                operands.push(hidden.clone());
            }
            let y = run(Op::Attention { causal, logit_scale: 0.7 }, &[1.5], &operands)?;
            let [q, k, v] = [0, 1, 2].map(|n: usize| &operands[n].data);
            let mut output = vec![0.0; b * s * h * d];
            let mut lse = vec![0.0; b * h * s];
            for batch in 0..b {
                for head in 0..h {
                    let kv = head / (h / n);
                    for i in 0..s {
                        let keys = if causal { i + t - s + 1 } else { t };
                        let query = &q[((batch * s + i) * h + head) * d..][..d];
                        let key = |j: usize| ((batch * t + j) * n + kv) * d;
                        let weights: Vec<f64> = (0..keys)
                            .map(|j| {
                                if masked && j == 1 {
                                    return 0.0;
                                }
                                let dot: f64 =
                                    query.iter().zip(&k[key(j)..]).map(|(a, b)| a * b).sum();
                                (0.7 * dot).exp()
                            })
                            .collect();
                        let sum: f64 = weights.iter().sum();
                        lse[(batch * h + head) * s + i] = sum.ln();
                        for c in 0..d {
                            let mixed: f64 =
                                weights.iter().enumerate().map(|(j, w)| w * v[key(j) + c]).sum();
                            output[((batch * s + i) * h + head) * d + c] = 1.5 * mixed / sum;
                        }
                    }
                }
            }
            assert_close(&y[0], &output);
            assert_close(&y[1], &lse);
        }
    }
    Ok(())
}

#[test]
fn cross_entropy_follows_its_formula() -> TestResult {
    let operands = [float(1, [2, 3, 5]), ids([2, 3], &[0, 4, 2, 2, 1, 3])];
    let total: f64 = operands[0]
        .data
        .chunks(5)
        .zip(&operands[1].data)
        .map(|(row, &target)| {
            let sum: f64 = row.iter().map(|v| (1.4 * v).exp()).sum();
            sum.ln() - 1.4 * row[target as usize]
        })
        .sum();
    assert_close(
        &run(Op::CrossEntropy { mult: 1.4, mean: false }, &[1.0], &operands)?[0],
        &[total],
    );
    let mean = run(Op::CrossEntropy { mult: 1.4, mean: true }, &[2.0], &operands)?;
    assert_close(&mean[0], &[2.0 * total / 6.0]);
    // A mask leaves positions out of the mean, even with a target that is no class.
    let masked =
        [operands[0].clone(), ids([2, 3], &[0, 9, 2, 2, 1, 3]), ids([2, 3], &[1, 0, 0, 1, 1, 0])];
    let each: Vec<f64> = operands[0]
        .data
        .chunks(5)
        .zip(&operands[1].data)
        .map(|(row, &target)| {
            let sum: f64 = row.iter().map(|v| (1.4 * v).exp()).sum();
            sum.ln() - 1.4 * row[target as usize]
        })
        .collect();
    let few = run(Op::CrossEntropy { mult: 1.4, mean: true }, &[2.0], &masked)?;
    assert_close(&few[0], &[2.0 * (each[0] + each[3] + each[4]) / 3.0]);
    let sum = run(Op::CrossEntropy { mult: 1.4, mean: false }, &[1.0], &masked)?;
    assert_close(&sum[0], &[each[0] + each[3] + each[4]]);
    let wrong = [operands[0].clone(), ids([2, 3], &[0, 4, 2, 5, 1, 3])];
    let loss = run(Op::CrossEntropy { mult: 1.4, mean: true }, &[1.0], &wrong)?;
    assert!(loss[0][0].is_nan(), "a target beyond the classes gives NaN");
    Ok(())
}

#[test]
fn adam_w_follows_its_formula_and_skips() -> TestResult {
    let config = AdamWConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8, decay: 0.1, lr_scale: 0.5 };
    let scalar = |value: f64, dtype| Operand { shape: Shape::scalar(), dtype, data: vec![value] };
    for (step, factor) in [(0.0, 1.0), (1000.0, 0.25), (3.0, 0.0)] {
        let mut operands = vec![float(1, [7]), float(2, [7]), float(3, [7]), float(4, [7])];
        operands[3].data.iter_mut().for_each(|v| *v = v.abs());
        if factor == 0.0 {
            operands[1].data[2] = f64::INFINITY;
        }
        operands.push(scalar(0.01, DType::F32));
        operands.push(scalar(step, DType::U32));
        operands.push(scalar(factor, DType::F32));
        let results = run(Op::AdamW(config), &[1.0; 3], &operands)?;
        let t = step as i32 + 1;
        let mut expected = [Vec::new(), Vec::new(), Vec::new()];
        for i in 0..7 {
            let [w, g, m, v] = [0, 1, 2, 3].map(|n: usize| operands[n].data[i]);
            if factor == 0.0 {
                for (to, value) in expected.iter_mut().zip([w, m, v]) {
                    to.push(value);
                }
                continue;
            }
            let g = g * factor;
            let m = 0.9 * m + 0.1 * g;
            let v = 0.999 * v + 0.001 * g * g;
            let hat =
                (m / (1.0 - 0.9_f64.powi(t))) / ((v / (1.0 - 0.999_f64.powi(t))).sqrt() + 1e-8);
            expected[0].push(w * (1.0 - 0.01 * 0.1) - 0.01 * 0.5 * hat);
            expected[1].push(m);
            expected[2].push(v);
        }
        for (found, expected) in results.iter().zip(&expected) {
            assert_close(found, expected);
        }
    }
    Ok(())
}
