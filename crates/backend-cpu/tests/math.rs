//! Elementary functions against f64, over dense sweeps.

use onesigma_backend_cpu::Isa;
use onesigma_backend_cpu::elementwise::{Binary, Unary, binary, select, unary};

/// Abramowitz and Stegun 7.1.5 (series) and 7.1.14 (continued fraction), in f64.
fn erf(x: f64) -> f64 {
    let t = x.abs();
    let value = if t < 2.5 {
        let (mut term, mut sum) = (t, t);
        for n in 1..100 {
            term *= -t * t / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    } else {
        let fraction = (1..200).rev().fold(t, |tail, n| t + f64::from(n) / 2.0 / tail);
        1.0 - (-t * t).exp() / (fraction * std::f64::consts::PI.sqrt())
    };
    value.copysign(x)
}

fn sweep(from: f32, to: f32) -> Vec<f32> {
    let count = 40_000;
    (0..=count).map(|i| from + (to - from) * i as f32 / count as f32).collect()
}

/// `(operation, exact, from, to, largest relative error)`.
type Case = (Unary, fn(f64) -> f64, f32, f32, f64);

const CASES: [Case; 16] = [
    (Unary::Exp, f64::exp, -87.0, 88.7, 2e-7),
    (Unary::Exp, f64::exp, -1.0, 1.0, 2e-7),
    (Unary::Ln, f64::ln, 1e-3, 4.0, 3e-7),
    (Unary::Ln, f64::ln, 1e-38, 1e38, 3e-7),
    (Unary::Tanh, f64::tanh, -10.0, 10.0, 4e-7),
    (Unary::Erf, erf, -5.0, 5.0, 4e-7),
    (Unary::Sigmoid, |x| 1.0 / (1.0 + (-x).exp()), -80.0, 80.0, 4e-7),
    (Unary::Sqrt, f64::sqrt, 0.0, 1e6, 6e-8),
    (Unary::Rsqrt, |x| 1.0 / x.sqrt(), 1e-6, 1e6, 2e-7),
    (Unary::Abs, f64::abs, -3.0, 3.0, 0.0),
    (Unary::Neg, |x| -x, -3.0, 3.0, 0.0),
    (Unary::Tanh, f64::tanh, -0.01, 0.01, 4e-7),
    (Unary::Sin, f64::sin, -1.6, 1.6, 3e-7),
    (Unary::Cos, f64::cos, -1.5, 1.5, 3e-7),
    (Unary::Sin, f64::sin, 0.0, 4096.0, 1e-6),
    (Unary::Cos, f64::cos, -1e5, 1e5, 1e-6),
];

/// One test, because the instruction set is a setting of the process.
#[test]
fn agree_with_f64_on_every_instruction_set() {
    for isa in Isa::available() {
        isa.limit();
        for (op, exact, from, to, bound) in CASES {
            let x = sweep(from, to);
            let mut found = vec![0.0; x.len()];
            unary(op, &x, &mut found);
            for (x, found) in x.iter().zip(found) {
                let expected = exact(f64::from(*x));
                if f64::from(found) == expected {
                    continue;
                }
                let error = (f64::from(found) - expected).abs();
                let allowed = bound * expected.abs() + 1e-45;
                assert!(
                    error <= allowed,
                    "{op:?}({x:e}) on {isa:?}: found {found:e}, expected {expected:e}, \
                     relative error {:e}",
                    error / expected.abs()
                );
            }
        }
        special_values(isa);
        comparisons();
    }
}

fn special_values(isa: Isa) {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let cases = [
        (Unary::Exp, -inf, 0.0),
        (Unary::Exp, inf, inf),
        (Unary::Exp, 200.0, inf),
        (Unary::Exp, -200.0, 0.0),
        (Unary::Exp, 0.0, 1.0),
        (Unary::Ln, 0.0, -inf),
        (Unary::Ln, inf, inf),
        (Unary::Ln, -1.0, nan),
        (Unary::Ln, 1.0, 0.0),
        (Unary::Tanh, inf, 1.0),
        (Unary::Tanh, -inf, -1.0),
        (Unary::Tanh, 0.0, 0.0),
        (Unary::Erf, inf, 1.0),
        (Unary::Erf, -inf, -1.0),
        (Unary::Sigmoid, inf, 1.0),
        (Unary::Sigmoid, -inf, 0.0),
        (Unary::Sin, inf, nan),
        (Unary::Sin, 0.0, 0.0),
        (Unary::Cos, 0.0, 1.0),
        (Unary::Cos, -inf, nan),
        (Unary::Sqrt, -1.0, nan),
        (Unary::Rsqrt, 0.0, inf),
    ];
    for (op, x, expected) in cases {
        let mut out = [0.0];
        unary(op, &[x], &mut out);
        let same = out[0] == expected || out[0].is_nan() && expected.is_nan();
        assert!(same, "{op:?}({x}) on {isa:?} is {}, expected {expected}", out[0]);
        unary(op, &[nan], &mut out);
        assert!(out[0].is_nan(), "{op:?}(NaN) on {isa:?} is {}", out[0]);
    }
    let mut out = [0.0];
    unary(Unary::Exp, &[-100.0], &mut out);
    let subnormal = f64::from(out[0]) - (-100.0_f64).exp();
    assert!(subnormal.abs() < 2e-45, "exp reaches into the subnormals, found {}", out[0]);
}

fn comparisons() {
    let nan = f32::NAN;
    let x = [1.0, 2.0, 3.0, nan, 0.0];
    let y = [2.0, 2.0, 1.0, 1.0, nan];
    let check = |op, expected: [f32; 5]| {
        let mut out = [9.0; 5];
        binary(op, &x, &y, &mut out);
        for (found, expected) in out.iter().zip(expected) {
            assert!(*found == expected || found.is_nan() && expected.is_nan(), "{op:?}: {out:?}");
        }
    };
    check(Binary::Less, [1.0, 0.0, 0.0, 0.0, 0.0]);
    check(Binary::LessEqual, [1.0, 1.0, 0.0, 0.0, 0.0]);
    check(Binary::Equal, [0.0, 1.0, 0.0, 0.0, 0.0]);
    check(Binary::Min, [1.0, 2.0, 1.0, nan, nan]);
    check(Binary::Max, [2.0, 2.0, 3.0, nan, nan]);
    check(Binary::Sub, [-1.0, 0.0, 2.0, nan, nan]);
    check(Binary::Div, [0.5, 1.0, 3.0, nan, nan]);
    let mut out = [0.0; 3];
    select(&[1.0, 0.0, -2.0], &[1.0; 3], &[5.0; 3], &mut out);
    assert_eq!(out, [1.0, 5.0, 1.0]);
}
