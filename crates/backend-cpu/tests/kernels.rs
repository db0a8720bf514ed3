//! Row kernels and the optimiser against f64.

mod common;

use common::{FORMATS, Tensor, assert_all_close, assert_close, tolerance};
use onesigma_backend_cpu::Error;
use onesigma_backend_cpu::adamw::{AdamW, AdamWStep};
use onesigma_backend_cpu::norm::{Norm, NormGradients};
use onesigma_backend_cpu::softmax::{Classification, softmax, softmax_gradient};
use onesigma_format::{Conversion, Format, Rounding};

/// Rows and widths: ones, odd ones, more than a block of rows.
const SIZES: [(usize, usize); 6] = [(1, 1), (3, 1), (1, 7), (5, 33), (700, 100), (2, 1025)];

fn softmax_f64(x: &[f64], mult: f64) -> Vec<f64> {
    let max = x.iter().fold(f64::NEG_INFINITY, |a, b| a.max(b * mult));
    let e: Vec<f64> = x.iter().map(|x| (x * mult - max).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|e| e / sum).collect()
}

#[test]
fn softmax_and_gradient_agree_with_f64() {
    let (mult, alpha) = (1.5, 3.0);
    for format in FORMATS {
        for (rows, width) in SIZES {
            let x = Tensor::normal(format, rows * width, 2.0, 1);
            let dy = Tensor::normal(format, rows * width, 1.0, 2);
            let mut y = Tensor::room(Format::F32, rows * width);
            softmax(x.input(), width, mult, alpha, y.output()).unwrap();
            let p: Vec<f64> =
                x.values.chunks(width).flat_map(|row| softmax_f64(row, mult.into())).collect();
            let expected: Vec<f64> = p.iter().map(|p| p * f64::from(alpha)).collect();
            assert_all_close("softmax", &y, &expected, tolerance::SOFTMAX);

            let mut dx = Tensor::room(format, rows * width);
            softmax_gradient(y.input(), 1.0 / alpha, dy.input(), width, 0.5, dx.output()).unwrap();
            let expected: Vec<f64> = (0..rows)
                .flat_map(|row| {
                    let at = row * width..(row + 1) * width;
                    let (p, dy) = (&p[at.clone()], &dy.values[at]);
                    let along: f64 = p.iter().zip(dy).map(|(p, dy)| p * dy).sum();
                    p.iter().zip(dy).map(|(p, dy)| 0.5 * p * (dy - along)).collect::<Vec<_>>()
                })
                .collect();
            if width > 1 {
                // One class: the exact gradient is 0, which rounding of alpha · 1/alpha hides.
                assert_all_close("softmax gradient", &dx, &expected, tolerance::SOFTMAX);
            }
        }
    }
}

#[test]
fn norms_and_gradients_agree_with_f64() {
    for format in FORMATS {
        for (rows, width) in SIZES {
            for centred in [true, false] {
                norm_case(format, rows, width, centred);
            }
        }
    }
}

fn norm_case(format: Format, rows: usize, width: usize, centred: bool) {
    let norm = Norm { width, eps: 1e-2, centred };
    let x = Tensor::normal(format, rows * width, 2.0, 1);
    let dy = Tensor::normal(format, rows * width, 1.0, 2);
    let weight = Tensor::normal(Format::F32, width, 1.0, 3);
    let bias = Tensor::normal(Format::F32, width, 1.0, 4);
    let mut y = Tensor::room(format, rows * width);
    norm.forward(x.input(), Some(weight.input()), Some(bias.input()), 0.5, y.output()).unwrap();
    let [mut dx, mut dweight, mut dbias] = [
        Tensor::room(format, rows * width),
        Tensor::room(Format::F32, width),
        Tensor::room(Format::F32, width),
    ];
    let gradients = NormGradients {
        x: Some((dx.output(), 2.0)),
        weight: Some((dweight.output(), 0.5)),
        bias: Some((dbias.output(), 0.25)),
    };
    norm.backward(x.input(), Some(weight.input()), dy.input(), gradients).unwrap();

    let (mut y_expected, mut dx_expected) = (Vec::new(), Vec::new());
    let (mut dweight_expected, mut dbias_expected) = (vec![0.0; width], vec![0.0; width]);
    let n = width as f64;
    for row in 0..rows {
        let (x, dy) = (&x.values[row * width..][..width], &dy.values[row * width..][..width]);
        let mean = if centred { x.iter().sum::<f64>() / n } else { 0.0 };
        let square = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        let inverse = 1.0 / (square + f64::from(norm.eps)).sqrt();
        let h: Vec<f64> = x.iter().map(|x| (x - mean) * inverse).collect();
        let g: Vec<f64> = dy.iter().zip(&weight.values).map(|(dy, w)| dy * w).collect();
        let along = g.iter().zip(&h).map(|(g, h)| g * h).sum::<f64>() / n;
        let shift = if centred { g.iter().sum::<f64>() / n } else { 0.0 };
        for i in 0..width {
            y_expected.push(0.5 * (h[i] * weight.values[i] + bias.values[i]));
            dx_expected.push(2.0 * inverse * (g[i] - shift - h[i] * along));
            dweight_expected[i] += 0.5 * dy[i] * h[i];
            dbias_expected[i] += 0.25 * dy[i];
        }
    }
    assert_all_close("norm", &y, &y_expected, tolerance::NORM);
    if width > 1 {
        assert_all_close("dx", &dx, &dx_expected, tolerance::NORM);
    }
    assert_all_close("dweight", &dweight, &dweight_expected, tolerance::NORM);
    assert_all_close("dbias", &dbias, &dbias_expected, tolerance::NORM);
}

#[test]
fn cross_entropy_agrees_with_f64() {
    for format in FORMATS {
        for (rows, classes) in SIZES {
            let logits = Tensor::normal(format, rows * classes, 3.0, 5);
            let targets: Vec<usize> = (0..rows).map(|row| row * 7 % classes).collect();
            let bytes: Vec<u8> = targets.iter().flat_map(|t| (*t as u32).to_le_bytes()).collect();
            let (mult, logits_in) = (0.7, logits.input());
            let problem =
                Classification { logits: logits_in, classes, mult, targets: &bytes, mask: None };
            let found = problem.loss_sum().unwrap();
            let mut gradient = Tensor::room(Format::F32, rows * classes);
            problem.gradient(2.0, gradient.output()).unwrap();
            let (mut loss, mut expected) = (0.0, Vec::new());
            for (row, target) in logits.values.chunks(classes).zip(&targets) {
                let p = softmax_f64(row, f64::from(0.7_f32));
                loss -= p[*target].ln();
                expected.extend((0..classes).map(|i| 2.0 * (p[i] - f64::from(i == *target))));
            }
            let error = tolerance::CROSS_ENTROPY * (loss + rows as f64 * 1e-1);
            assert_close("loss", Format::F32, found.into(), loss, error);
            assert_all_close("dlogits", &gradient, &expected, tolerance::CROSS_ENTROPY);
        }
    }
}

#[test]
fn a_target_that_is_no_class_gives_nan() {
    let logits = Tensor::normal(Format::F32, 8, 1.0, 1);
    let targets: Vec<u8> = [1_u32, 4].iter().flat_map(|t| t.to_le_bytes()).collect();
    let logits = logits.input();
    let problem = Classification { logits, classes: 4, mult: 1.0, targets: &targets, mask: None };
    assert!(problem.loss_sum().unwrap().is_nan());
    let mut gradient = Tensor::room(Format::F32, 8);
    problem.gradient(1.0, gradient.output()).unwrap();
    let found = gradient.read();
    assert!(found[..4].iter().all(|x| x.is_finite()) && found[4..].iter().all(|x| x.is_nan()));
}

/// The rows that a mask leaves out might as well not be there, whatever their target is.
#[test]
fn rows_left_out_have_no_loss_and_no_gradient() {
    let (rows, classes) = (70, 33);
    let logits = Tensor::normal(Format::F32, rows * classes, 2.0, 5);
    let words =
        |f: fn(usize) -> u32| -> Vec<u8> { (0..rows).flat_map(|n| f(n).to_le_bytes()).collect() };
    let mask = words(|row| u32::from(row % 3 == 0) * 7);
    let targets = words(|row| if row % 3 == 0 { row as u32 % 33 } else { u32::MAX });
    let problem = Classification {
        logits: logits.input(),
        classes,
        mult: 1.0,
        targets: &targets,
        mask: Some(&mask),
    };
    let kept: Vec<f32> =
        logits.values.chunks(classes).step_by(3).flatten().map(|&x| x as f32).collect();
    let kept = Tensor::from_f32(Format::F32, &kept);
    let own: Vec<u8> = targets.chunks(4).step_by(3).flatten().copied().collect();
    let alone =
        Classification { logits: kept.input(), classes, mult: 1.0, targets: &own, mask: None };
    assert_eq!(problem.counted(), 24.0);
    let (loss, expected) = (problem.loss_sum().unwrap(), alone.loss_sum().unwrap());
    assert!((loss - expected).abs() < 1e-5 * expected, "{loss} {expected}");
    let mut gradient = Tensor::room(Format::F32, rows * classes);
    problem.gradient(2.0, gradient.output()).unwrap();
    let mut expected = Tensor::room(Format::F32, kept.values.len());
    alone.gradient(2.0, expected.output()).unwrap();
    let (found, expected) = (gradient.read(), expected.read());
    for (row, found) in found.chunks(classes).enumerate() {
        match row % 3 {
            0 => assert_eq!(found, &expected[row / 3 * classes..][..classes]),
            _ => assert!(found.iter().all(|x| *x == 0.0), "row {row}: {found:?}"),
        }
    }
    let none = Classification { mask: Some(&[0; 70 * 4]), ..problem };
    assert_eq!((none.loss_sum().unwrap(), none.counted()), (0.0, 1.0));
    let short = Classification { mask: Some(&mask[4..]), ..problem };
    assert!(short.loss_sum().is_err());
}

#[test]
fn a_certain_class_keeps_its_small_gradient() {
    // p = 1 - e^-20: in f32, 1 - p would be 0.
    let logits = Tensor::from_f32(Format::F32, &[20.0, 0.0]);
    let problem = Classification {
        logits: logits.input(),
        classes: 2,
        mult: 1.0,
        targets: &0_u32.to_le_bytes(),
        mask: None,
    };
    let mut gradient = Tensor::room(Format::F32, 2);
    problem.gradient(1.0, gradient.output()).unwrap();
    let expected = -1.0 / (1.0 + 20.0_f64.exp());
    assert_close("dlogit", Format::F32, gradient.read()[0], expected, expected.abs() * 1e-6);
}

#[test]
fn adamw_agrees_with_f64_for_states_in_any_format() {
    let adam = AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-6, weight_decay: 0.1, lr_scale: 0.5 };
    let now = AdamWStep { lr: 0.25, step: 3.0, grad_factor: 0.5 };
    for format in FORMATS {
        for len in [0, 1, 1000, 40_000] {
            let mut w = Tensor::normal(Format::F32, len, 1.0, 1);
            let g = Tensor::normal(format, len, 1.0, 2);
            let mut m = Tensor::normal(format, len, 1.0, 3);
            let mut v = Tensor::normal(format, len, 1.0, 4);
            let squares: Vec<f32> = v.values.iter().map(|x| (x * x) as f32).collect();
            v = Tensor::from_f32(format, &squares);
            let before = [w.values.clone(), m.values.clone(), v.values.clone()];
            adam.update(now, w.output(), g.input(), m.output(), v.output()).unwrap();
            let (w, m, v) = (w.read(), m.read(), v.read());
            let (b1, b2) = (f64::from(0.9_f32), f64::from(0.99_f32));
            for i in 0..len {
                let g = 0.5 * g.values[i];
                let m_expected = b1 * before[1][i] + (1.0 - b1) * g;
                let v_expected = b2 * before[2][i] + (1.0 - b2) * g * g;
                let root = (v_expected / (1.0 - b2.powi(3))).sqrt() + 1e-6;
                let update = 0.125 * (m_expected / (1.0 - b1.powi(3))) / root;
                let decay = 0.25 * f64::from(0.1_f32);
                let w_expected = before[0][i] * (1.0 - decay) - update;
                let error = tolerance::ADAMW * (update.abs() + before[0][i].abs() + 1.0);
                assert_close("w", Format::F32, w[i], w_expected, error * (1.0 + 1.0 / root));
                assert_close("m", format, m[i], m_expected, tolerance::ADAMW * 4.0);
                assert_close("v", format, v[i], v_expected, tolerance::ADAMW * v_expected);
            }
        }
    }
}

#[test]
fn a_gradient_factor_of_zero_changes_nothing() {
    let adam = AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-6, weight_decay: 0.1, lr_scale: 1.0 };
    let now = AdamWStep { lr: 0.25, step: 1.0, grad_factor: 0.0 };
    let [mut w, mut m, mut v] = [1, 2, 3].map(|seed| Tensor::normal(Format::E4M3, 50, 1.0, seed));
    let g = Tensor::from_f32(Format::F32, &[f32::NAN; 50]);
    let before = [w.bytes.clone(), m.bytes.clone(), v.bytes.clone()];
    adam.update(now, w.output(), g.input(), m.output(), v.output()).unwrap();
    assert_eq!(before, [w.bytes, m.bytes, v.bytes]);
}

#[test]
fn sizes_that_disagree_are_refused() {
    let x = Tensor::normal(Format::F32, 10, 1.0, 1);
    let mut y = Tensor::room(Format::F32, 9);
    let error = softmax(x.input(), 5, 1.0, 1.0, y.output()).unwrap_err();
    let expected = Error::Length { kernel: "softmax", operand: "y", found: 9, expected: 10 };
    assert_eq!(error, expected);
    assert!(matches!(softmax(x.input(), 0, 1.0, 1.0, y.output()), Err(Error::Shape { .. })));
    let rounding = Rounding::Stochastic { bits: 7 };
    let mut y = Tensor::room(Format::E4M3, 10);
    let mut out = y.output();
    out.how = Conversion { rounding, ..Conversion::SATURATE };
    assert!(matches!(softmax(x.input(), 5, 1.0, 1.0, out), Err(Error::Format(_))));
}
