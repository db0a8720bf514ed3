//! From f64 into a format with a single rounding.

use onesigma_format::{Conversion, Format, Noise, Rounding, decode, encode, philox};

/// The value of `format` that `value` is rounded to, by one correct rounding.
///
/// Narrow formats are reached over f32, rounded to odd: the last bit of the f32 says whether
/// anything was cut off, so the second rounding decides as if it saw the f64 (Boldo and Melquiond,
/// "Emulation of FMA and correctly rounded sums", 2008, theorem 3). [`Format::F32`] is IEEE's
/// nearest-even rounding and overflows to infinity whatever `how` says, as in every backend, where
/// f32 is the type of the work itself. Stochastic rounding starts from the nearest f32, the value
/// that backends draw for.
pub fn round(value: f64, format: Format, how: Conversion, random: u32) -> f64 {
    if format.is_f32() {
        return f64::from(value as f32);
    }
    let single = match how.rounding {
        Rounding::Stochastic { .. } => value as f32,
        _ => to_odd(value),
    };
    f64::from(decode(encode(single, format, how, random), format))
}

pub(super) fn round_slice(data: &mut [f64], format: Format, how: Conversion, noise: Noise) {
    for (index, value) in data.iter_mut().enumerate() {
        let random = match how.rounding {
            Rounding::Stochastic { bits } => philox::draw(noise, index as u64, bits),
            _ => 0,
        };
        *value = round(*value, format, how, random);
    }
}

/// f64 to f32, toward zero, with the last bit set if anything was cut off.
fn to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    if f64::from(nearest) == value || value.is_nan() {
        return nearest;
    }
    let bits = nearest.to_bits();
    let toward_zero = if f64::from(nearest).abs() > value.abs() { bits - 1 } else { bits };
    f32::from_bits(toward_zero | 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_just_above_a_tie_is_not_rounded_twice() {
        // 1 + 2^-4 is halfway between 1 and 1.125 in E4M3; nearest f32 of a little more is the
        // tie itself, which would go to the even 1.
        let above = 1.0 + 2.0_f64.powi(-4) + 2.0_f64.powi(-40);
        assert_eq!(above as f32, 1.0625);
        assert_eq!(round(above, Format::E4M3, Conversion::SATURATE, 0), 1.125);
        assert_eq!(round(-above, Format::E4M3, Conversion::SATURATE, 0), -1.125);
        let below = 1.0 + 3.0 * 2.0_f64.powi(-4) - 2.0_f64.powi(-40);
        assert_eq!(round(below, Format::E4M3, Conversion::SATURATE, 0), 1.125);
    }

    #[test]
    fn every_code_and_tie_of_every_format_rounds_to_nearest_even() {
        for &format in Format::NAMED.iter().filter(|format| format.bits() <= 8) {
            let how = Conversion::SATURATE;
            let mut values: Vec<f64> = (0..1 << format.bits())
                .map(|code| f64::from(decode(code, format)))
                .filter(|value| value.is_finite() && *value > 0.0)
                .collect();
            values.sort_by(f64::total_cmp);
            values.dedup();
            for pair in values.windows(2) {
                let middle = 0.5 * (pair[0] + pair[1]);
                let step = middle * 2.0_f64.powi(-45);
                assert_eq!(round(middle - step, format, how, 0), pair[0], "{format}");
                assert_eq!(round(middle + step, format, how, 0), pair[1], "{format}");
                assert!(pair.contains(&round(middle, format, how, 0)), "{format}");
            }
        }
    }

    #[test]
    fn beyond_f32_the_rules_of_overflow_hold() {
        assert_eq!(round(1e300, Format::F16, Conversion::SATURATE, 0), 65504.0);
        assert_eq!(round(1e300, Format::F16, Conversion::SPECIAL, 0), f64::INFINITY);
        assert_eq!(round(1e300, Format::F32, Conversion::SATURATE, 0), f64::INFINITY);
        assert_eq!(round(-1e-300, Format::F16, Conversion::SATURATE, 0), 0.0);
        assert!(round(f64::NAN, Format::E5M2, Conversion::SATURATE, 0).is_nan());
    }
}
