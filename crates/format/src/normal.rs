//! The inverse of the normal distribution function, in arithmetic that is the same everywhere.

// Numerators and denominators of AS 241, constant term first.
const CENTRE: [[f64; 8]; 2] = [
    [
        3.387_132_872_796_366_5,
        1.331_416_678_917_843_8e2,
        1.971_590_950_306_551_3e3,
        1.373_169_376_550_946e4,
        4.592_195_393_154_987e4,
        6.726_577_092_700_87e4,
        3.343_057_558_358_813e4,
        2.509_080_928_730_122_7e3,
    ],
    [
        1.0,
        4.231_333_070_160_091e1,
        6.871_870_074_920_579e2,
        5.394_196_021_424_751e3,
        2.121_379_430_158_659_7e4,
        3.930_789_580_009_271e4,
        2.872_908_573_572_194_3e4,
        5.226_495_278_852_854e3,
    ],
];
const NEAR_TAIL: [[f64; 8]; 2] = [
    [
        1.423_437_110_749_683_5,
        4.630_337_846_156_546,
        5.769_497_221_460_691,
        3.647_848_324_763_204_5,
        1.270_458_252_452_368_4,
        2.417_807_251_774_506e-1,
        2.272_384_498_926_918_4e-2,
        7.745_450_142_783_414e-4,
    ],
    [
        1.0,
        2.053_191_626_637_759,
        1.676_384_830_183_803_8,
        6.897_673_349_851e-1,
        1.481_039_764_274_800_8e-1,
        1.519_866_656_361_645_7e-2,
        5.475_938_084_995_345e-4,
        1.050_750_071_644_416_9e-9,
    ],
];
const FAR_TAIL: [[f64; 8]; 2] = [
    [
        6.657_904_643_501_103,
        5.463_784_911_164_114,
        1.784_826_539_917_291_3,
        2.965_605_718_285_048_7e-1,
        2.653_218_952_657_612_4e-2,
        1.242_660_947_388_078_4e-3,
        2.711_555_568_743_487_6e-5,
        2.010_334_399_292_288_1e-7,
    ],
    [
        1.0,
        5.998_322_065_558_88e-1,
        1.369_298_809_227_358e-1,
        1.487_536_129_085_061_5e-2,
        7.868_691_311_456_133e-4,
        1.846_318_317_510_054_8e-5,
        1.421_511_758_316_446e-7,
        2.044_263_103_389_939_8e-15,
    ],
];

const LN_2: f64 = core::f64::consts::LN_2;

/// The x with Φ(x) = 1/2 + q, for q in (-1/2, 1/2).
pub(crate) const fn inverse_normal(q: f64) -> f64 {
    if q.abs() <= 0.425 {
        return q * ratio(&CENTRE, 0.180_625 - q * q);
    }
    let r = square_root(-logarithm(0.5 - q.abs()));
    let x = if r <= 5.0 { ratio(&NEAR_TAIL, r - 1.6) } else { ratio(&FAR_TAIL, r - 5.0) };
    if q < 0.0 { -x } else { x }
}

const fn ratio(coefficients: &[[f64; 8]; 2], x: f64) -> f64 {
    horner(&coefficients[0], x) / horner(&coefficients[1], x)
}

const fn horner(coefficients: &[f64; 8], x: f64) -> f64 {
    let mut sum = coefficients[7];
    let mut power = 7;
    while power > 0 {
        power -= 1;
        sum = sum * x + coefficients[power];
    }
    sum
}

/// Natural logarithm of a positive normal number: ln(2^e m) = e ln 2 + 2 artanh((m-1)/(m+1)).
const fn logarithm(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut exponent = (bits >> 52) as i32 - 1023;
    let mut mantissa = f64::from_bits(bits & ((1 << 52) - 1) | 1023 << 52);
    if mantissa > core::f64::consts::SQRT_2 {
        mantissa *= 0.5;
        exponent += 1;
    }
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let square = s * s; // at most 0.0295: the first term left out is below 1e-17
    let mut series = 0.0;
    let mut odd = 23;
    while odd >= 1 {
        series = series * square + 1.0 / odd as f64;
        odd -= 2;
    }
    exponent as f64 * LN_2 + 2.0 * s * series
}

/// Square root of a number between 1 and 1000 by Newton's iteration.
const fn square_root(x: f64) -> f64 {
    // Halving the exponent gives a start within 7 %; four steps square that error below 1 ulp.
    let mut root = f64::from_bits((x.to_bits() >> 1) + (1023 << 51));
    let mut step = 0;
    while step < 5 {
        root = 0.5 * (root + x / root);
        step += 1;
    }
    root
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_tables() {
        // (p, x): Φ(x) = p to the digits shown.
        for (p, x) in [
            (0.5, 0.0),
            (0.75, 0.674_489_750_196_081_7),
            (0.9, 1.281_551_565_544_600_4),
            (0.975, 1.959_963_984_540_054),
            (0.995, 2.575_829_303_548_900_4),
            (0.001, -3.090_232_306_167_813_5),
            (1e-6, -4.753_424_308_822_899),
            (1e-9, -5.997_807_015_007_686_5),
        ] {
            let found = inverse_normal(p - 0.5);
            assert!((found - x).abs() <= 3e-9 * x.abs(), "{p}: {found} instead of {x}");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri makes f64::ln inexact on purpose")]
    fn logarithm_and_root_are_within_two_ulp() {
        let mut x: f64 = 1e-10;
        while x < 0.5 {
            let (log, expected) = (logarithm(x), x.ln());
            assert!((log - expected).abs() <= 4e-16 * expected.abs(), "ln {x}");
            let (root, expected) = (square_root(1.0 / x.sqrt()), (1.0 / x.sqrt()).sqrt());
            assert!((root - expected).abs() <= 4e-16 * expected, "root at {x}");
            x *= 1.0137;
        }
    }
}
