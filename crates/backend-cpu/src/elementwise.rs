//! Element-wise operations over short runs of f32, the steps of an expression interpreter.
//!
//! Each step reads and writes registers of a few hundred to a thousand elements that stay in the
//! L1 cache. Errors are those of [`math`](crate::math).

use crate::math;
use crate::simd::simd_fn;

/// A function of one number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs)]
pub enum Unary {
    Neg,
    Abs,
    Exp,
    Ln,
    Sqrt,
    /// 1 / √x.
    Rsqrt,
    /// 1 / x.
    Recip,
    Tanh,
    Erf,
    /// 1 / (1 + e^-x).
    Sigmoid,
    Sin,
    Cos,
    Floor,
    /// -1, 0 or 1; NaN for NaN.
    Sign,
}

/// A function of two numbers. Comparisons give 1 or 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs)]
pub enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    /// The smaller; NaN if either is.
    Min,
    /// The larger; NaN if either is.
    Max,
    Pow,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    Equal,
    NotEqual,
}

#[inline(always)]
fn each(x: &[f32], out: &mut [f32], f: impl Fn(f32) -> f32) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = f(*x);
    }
}

#[inline(always)]
fn each2(x: &[f32], y: &[f32], out: &mut [f32], f: impl Fn(f32, f32) -> f32) {
    for ((out, x), y) in out.iter_mut().zip(x).zip(y) {
        *out = f(*x, *y);
    }
}

simd_fn! {
    /// `out[i] = op(x[i])`, up to the shorter length.
    pub fn unary[FMA](op: Unary, x: &[f32], out: &mut [f32]) {
        match op {
            Unary::Neg => each(x, out, |x| -x),
            Unary::Abs => each(x, out, f32::abs),
            Unary::Exp => each(x, out, math::exp::<FMA>),
            Unary::Ln => each(x, out, math::ln::<FMA>),
            Unary::Sqrt => each(x, out, f32::sqrt),
            Unary::Rsqrt => each(x, out, |x| 1.0 / x.sqrt()),
            Unary::Recip => each(x, out, |x| 1.0 / x),
            Unary::Tanh => each(x, out, math::tanh::<FMA>),
            Unary::Erf => each(x, out, math::erf::<FMA>),
            Unary::Sigmoid => each(x, out, math::sigmoid::<FMA>),
            Unary::Sin => each(x, out, f32::sin),
            Unary::Cos => each(x, out, f32::cos),
            Unary::Floor => each(x, out, f32::floor),
            Unary::Sign => each(x, out, |x| {
                if x > 0.0 { 1.0 } else if x < 0.0 { -1.0 } else { x * 0.0 }
            }),
        }
    }
}

simd_fn! {
    /// `out[i] = op(x[i], y[i])`, up to the shortest length.
    pub fn binary[FMA](op: Binary, x: &[f32], y: &[f32], out: &mut [f32]) {
        #[inline(always)]
        fn truth(is: bool) -> f32 {
            if is { 1.0 } else { 0.0 }
        }
        match op {
            Binary::Add => each2(x, y, out, |x, y| x + y),
            Binary::Sub => each2(x, y, out, |x, y| x - y),
            Binary::Mul => each2(x, y, out, |x, y| x * y),
            Binary::Div => each2(x, y, out, |x, y| x / y),
            Binary::Min => each2(x, y, out, |x, y| if x < y || x.is_nan() { x } else { y }),
            Binary::Max => each2(x, y, out, |x, y| if x > y || x.is_nan() { x } else { y }),
            Binary::Pow => each2(x, y, out, f32::powf),
            Binary::Less => each2(x, y, out, |x, y| truth(x < y)),
            Binary::LessEqual => each2(x, y, out, |x, y| truth(x <= y)),
            Binary::Greater => each2(x, y, out, |x, y| truth(x > y)),
            Binary::GreaterEqual => each2(x, y, out, |x, y| truth(x >= y)),
            Binary::Equal => each2(x, y, out, |x, y| truth(x == y)),
            Binary::NotEqual => each2(x, y, out, |x, y| truth(x != y)),
        }
    }
}

simd_fn! {
    /// `out[i] = if condition[i] ≠ 0 { x[i] } else { y[i] }`, up to the shortest length.
    pub fn select[FMA](condition: &[f32], x: &[f32], y: &[f32], out: &mut [f32]) {
        for (((out, c), x), y) in out.iter_mut().zip(condition).zip(x).zip(y) {
            *out = if *c != 0.0 { *x } else { *y };
        }
    }
}

simd_fn! {
    /// `out[i] = x[i] · scale + shift`, rounded twice.
    pub fn affine[FMA](x: &[f32], scale: f32, shift: f32, out: &mut [f32]) {
        each(x, out, |x| x * scale + shift);
    }
}
