//! Elementary functions in f32, written so that the compiler vectorises loops over them.
//!
//! Largest errors against f64, measured over a dense sweep of the range (`tests/math.rs` holds
//! them): `exp` 1.5e-7 relative, `ln` 2e-7 relative, `tanh` 3e-7 relative, `erf` 3e-7 relative,
//! `sigmoid` 3e-7 relative, `sin` and `cos` 2e-7 absolute; the rest are correctly rounded. Infinities, zeros and NaN behave as
//! in `f32`'s own functions. Coefficients are least-squares fits weighted to equal error, made for
//! this file.

// Fitted coefficients are not the constants that they resemble, and nine digits name an f32.
#![allow(clippy::approx_constant, clippy::excessive_precision)]

use crate::simd::fma;

/// Polynomial with the constant term first.
#[inline(always)]
fn polynomial<const FMA: bool, const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut sum = coefficients[N - 1];
    for coefficient in coefficients[..N - 1].iter().rev() {
        sum = fma::<FMA>(sum, x, *coefficient);
    }
    sum
}

/// Adding and taking away 1.5 · 2^23 rounds to an integer, to nearest-even.
const ROUNDER: f32 = 12_582_912.0;

/// e^x.
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    // Beyond these e^x is 0 or infinite in f32; comparisons let NaN pass.
    let x = if x < -104.0 { -104.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let shifted = fma::<FMA>(x, std::f32::consts::LOG2_E, ROUNDER);
    let n = shifted - ROUNDER;
    // ln 2 in two parts; n times the first is exact.
    let r = fma::<FMA>(n, -0.693_359_4, x);
    let r = fma::<FMA>(n, 2.121_944_4e-4, r);
    let tail = polynomial::<FMA, 6>(
        r,
        [0.5, 0.166_666_67, 0.041_666_27, 0.008_333_264, 0.001_394_617_7, 0.000_199_185_25],
    );
    let value = fma::<FMA>(r * r, tail, r) + 1.0;
    // Two factors, so that results reach down into the subnormals.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUNDER.to_bits() as i32);
    let half = n >> 1;
    value * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// 2^n for -126 ≤ n ≤ 127; anything for other exponents, which only a NaN yields.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// Natural logarithm.
#[inline(always)]
pub(crate) fn ln<const FMA: bool>(x: f32) -> f32 {
    let small = x < f32::MIN_POSITIVE;
    let scaled = if small { x * 8_388_608.0 } else { x };
    // Mantissa in [√½, √2).
    let bits = scaled.to_bits().wrapping_sub(0x3f35_04f3);
    let exponent = (bits as i32) >> 23;
    let f = f32::from_bits((bits & 0x7f_ffff).wrapping_add(0x3f35_04f3)) - 1.0;
    let tail = polynomial::<FMA, 9>(
        f,
        [
            0.333_333_1,
            -0.249_999_87,
            0.200_022_27,
            -0.166_692_51,
            0.142_186_58,
            -0.123_843_43,
            0.118_729_66,
            -0.117_898_35,
            0.069_154_25,
        ],
    );
    let n = exponent as f32 - if small { 23.0 } else { 0.0 };
    let square = f * f;
    let value = fma::<FMA>(n, -2.121_944_4e-4, square * f * tail);
    let value = fma::<FMA>(square, -0.5, value) + f;
    let value = fma::<FMA>(n, 0.693_359_4, value);
    let value = if x == f32::INFINITY { x } else { value };
    let value = if x == 0.0 { f32::NEG_INFINITY } else { value };
    if x < 0.0 || x.is_nan() { f32::NAN } else { value }
}

/// Hyperbolic tangent.
#[inline(always)]
pub(crate) fn tanh<const FMA: bool>(x: f32) -> f32 {
    let z = x * x;
    let odd = polynomial::<FMA, 5>(
        z,
        [-0.333_332_63, 0.133_308_99, -0.053_692_967, 0.020_483_315, -0.005_528_633],
    );
    let near = fma::<FMA>(x * z, odd, x);
    let far = 1.0 - 2.0 / (exp::<FMA>(2.0 * x.abs()) + 1.0);
    let far = far.copysign(x);
    if x.abs() < 0.65 { near } else { far }
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(crate) fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    let e = exp::<FMA>(-x.abs());
    let numerator = if x < 0.0 { e } else { 1.0 };
    numerator / (1.0 + e)
}

/// The error function 2/√π ∫₀ˣ e^(-t²) dt: x times a rational function of x², which beyond 3.85 is
/// 1 in f32.
#[inline(always)]
pub(crate) fn erf<const FMA: bool>(x: f32) -> f32 {
    let z = x * x;
    let over = polynomial::<FMA, 6>(
        z,
        [1.128_379_1, 0.187_898_9, 0.052_479_867, 0.003_673_981_9, 0.000_285_675_9, 2.108_270_8e-6],
    );
    let under = polynomial::<FMA, 6>(
        z,
        [1.0, 0.499_853_94, 0.113_129_46, 0.014_784_997, 0.001_145_513_3, 3.873_188e-5],
    );
    let near = x * over / under;
    if x.abs() > 3.85 { 1.0_f32.copysign(x) } else { near }
}

/// The angle less the nearest multiple of π/2, and that multiple modulo 2^32. In f64, so that
/// angles of many turns (positions times frequencies) lose nothing; exact to f32 below 2^26.
#[inline(always)]
fn quadrant(x: f32) -> (f32, u32) {
    // Adding 1.5 · 2^52 rounds to an integer, which then stands in the low bits.
    const ROUNDER: f64 = 6_755_399_441_055_744.0;
    let x = f64::from(x);
    let shifted = x * std::f64::consts::FRAC_2_PI + ROUNDER;
    let rest = x - (shifted - ROUNDER) * std::f64::consts::FRAC_PI_2;
    (rest as f32, shifted.to_bits() as u32)
}

/// Sine or, a quarter turn on, cosine: Taylor series to the ninth and tenth power on ±π/4, whose
/// remainders are 2e-9 and 2e-10.
#[inline(always)]
fn wave<const FMA: bool>(x: f32, quarters: u32) -> f32 {
    let (r, n) = quadrant(x);
    let n = n.wrapping_add(quarters);
    let z = r * r;
    let odd = polynomial::<FMA, 4>(z, [-1.0 / 6.0, 1.0 / 120.0, -1.0 / 5040.0, 1.0 / 362_880.0]);
    let sin = fma::<FMA>(r * z, odd, r);
    let even =
        polynomial::<FMA, 4>(z, [1.0 / 24.0, -1.0 / 720.0, 1.0 / 40_320.0, -1.0 / 3_628_800.0]);
    let cos = fma::<FMA>(z * z, even, fma::<FMA>(z, -0.5, 1.0));
    let value = if n & 1 == 0 { sin } else { cos };
    if n & 2 == 0 { value } else { -value }
}

/// Sine of an angle in radians.
#[inline(always)]
pub(crate) fn sin<const FMA: bool>(x: f32) -> f32 {
    wave::<FMA>(x, 0)
}

/// Cosine of an angle in radians.
#[inline(always)]
pub(crate) fn cos<const FMA: bool>(x: f32) -> f32 {
    wave::<FMA>(x, 1)
}

crate::simd::simd_fn! {
    /// Largest element; -∞ for none. NaN is skipped.
    pub(crate) fn max_of[FMA](x: &[f32]) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; 32];
        let (blocks, rest) = x.as_chunks::<32>();
        for block in blocks {
            for (lane, x) in lanes.iter_mut().zip(block) {
                *lane = if *x > *lane { *x } else { *lane };
            }
        }
        let last = rest.iter().fold(f32::NEG_INFINITY, |max, x| if *x > max { *x } else { max });
        let mut lanes = through_memory(lanes);
        let mut width = lanes.len();
        while width > 1 {
            width /= 2;
            for i in 0..width {
                lanes[i] = if lanes[i + width] > lanes[i] { lanes[i + width] } else { lanes[i] };
            }
        }
        if last > lanes[0] { last } else { lanes[0] }
    }
}

/// The same lanes, of which the compiler knows no more than that they were stored: it then
/// vectorises the loop before as wide as the store, not as narrow as the tree behind.
#[inline(always)]
fn through_memory<const N: usize>(lanes: [f32; N]) -> [f32; N] {
    std::hint::black_box(lanes)
}

/// Adds `lanes` in a fixed tree.
#[inline(always)]
pub(crate) fn add_lanes<const N: usize>(lanes: [f32; N]) -> f32 {
    let mut lanes = through_memory(lanes);
    let mut width = N;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
    }
    lanes[0]
}

/// `Σ term([x0[i], x1[i], ..])` over 32 lanes, then a tree, then the last elements one by one: the
/// same order on every instruction set.
/// All slices are as long as the first.
#[inline(always)]
pub(crate) fn sum_over<const N: usize>(x: [&[f32]; N], term: impl Fn([f32; N]) -> f32) -> f32 {
    let len = x[0].len();
    let mut lanes = [0.0_f32; 32];
    for b in 0..len / 32 {
        // Whole blocks have a known length, so the inner loop needs no bounds checks.
        let blocks: [&[f32; 32]; N] = x.map(|x| &x.as_chunks::<32>().0[b]);
        for i in 0..32 {
            lanes[i] += term(std::array::from_fn(|n| blocks[n][i]));
        }
    }
    // Apart from the lanes, so that those stay in registers.
    let mut rest = 0.0;
    for i in len / 32 * 32..len {
        rest += term(std::array::from_fn(|n| x[n][i]));
    }
    add_lanes(lanes) + rest
}

crate::simd::simd_fn! {
    /// `Σ x y`, up to the length of x.
    pub(crate) fn dot[FMA](x: &[f32], y: &[f32]) -> f32 {
        sum_over([x, &y[..x.len()]], |[x, y]| x * y)
    }
}
