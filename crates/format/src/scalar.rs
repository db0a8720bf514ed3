//! The reference codec: one value at a time, in exact integer arithmetic, usable in `const`.

use crate::{Conversion, Format, Overflow, Rounding, Specials, spec::pow2};

const INFINITY: u32 = 0x7f80_0000;

/// The code of `value` in `format`.
///
/// `random` gives its low bits to [`Rounding::Stochastic`] and is not used otherwise.
/// [`Format::F32`] is a copy. NaN keeps its sign and becomes the canonical NaN; in a format without
/// NaN it becomes the largest positive value. The unsigned E8M0 has neither zero nor sign: zero and
/// positive values below its range become 2^-127; negative values become that too under
/// [`Overflow::Saturate`] and NaN under [`Overflow::Special`].
///
/// ```
/// use onesigma_format::{Conversion, Format, encode};
/// const ONE: u32 = encode(1.0, Format::E4M3, Conversion::SATURATE, 0);
/// assert_eq!(ONE, 0x38);
/// ```
#[inline]
pub const fn encode(value: f32, format: Format, how: Conversion, random: u32) -> u32 {
    let bits = value.to_bits();
    if format.is_f32() {
        return bits;
    }
    let negative = bits >> 31 != 0;
    let magnitude = bits & 0x7fff_ffff;
    if magnitude > INFINITY {
        let code = format.nan_code();
        let unsigned = !format.has_nan() || matches!(format.specials(), Specials::Fnuz);
        return if unsigned || !negative { code } else { code | format.sign_bit() };
    }
    if matches!(format.specials(), Specials::Scale) && (negative || magnitude == 0) {
        let special = negative && magnitude != 0 && matches!(how.overflow, Overflow::Special);
        return if special { format.nan_code() } else { 0 };
    }
    if magnitude == INFINITY {
        let special = matches!(how.overflow, Overflow::Special);
        let code = if special { format.special_code() } else { format.max_code() };
        return with_sign(code, negative, format);
    }
    if magnitude == 0 {
        return with_sign(0, negative, format);
    }
    let code = round(magnitude, negative, format, how.rounding, random);
    if code <= format.max_code() as u64 {
        return with_sign(code as u32, negative, format);
    }
    let inward = match how.rounding {
        Rounding::TowardZero => true,
        Rounding::Up => negative,
        Rounding::Down => !negative,
        _ => false,
    };
    let special = !inward && matches!(how.overflow, Overflow::Special);
    let code = if special { format.special_code() } else { format.max_code() };
    with_sign(code, negative, format)
}

/// Magnitude code of a positive finite value as if the exponent range had no upper end.
const fn round(magnitude: u32, negative: bool, format: Format, rule: Rounding, random: u32) -> u64 {
    // value = significand · 2^(exponent - 23), with the significand in [2^23, 2^24).
    let (significand, exponent) = if magnitude >> 23 == 0 {
        let up = magnitude.leading_zeros() - 8;
        ((magnitude << up) as u64, -126 - up as i32)
    } else {
        ((magnitude & 0x7f_ffff | 0x80_0000) as u64, (magnitude >> 23) as i32 - 127)
    };
    let minimum = format.min_exponent();
    let p = format.mantissa_bits() as i32;
    let scale = matches!(format.specials(), Specials::Scale);
    if scale && exponent < minimum {
        return 0;
    }
    // Quantum 2^(top - p); the code is `base` plus the value counted in quanta.
    let top = if exponent > minimum { exponent } else { minimum };
    let hidden = if scale { 1 } else { 0 };
    let base = ((top - minimum) as u64) << p;
    let dropped = 23 - p + top - exponent;
    let (whole, fraction, bits) = if dropped < 64 {
        (significand >> dropped, significand & ((1u64 << dropped) - 1), dropped as u32)
    } else {
        (0, 1, 63) // far below the quantum: any fraction in (0, 2^-32) acts the same
    };
    let half = 1u64 << (bits - 1);
    let odd = whole & 1 == 1;
    let up = match rule {
        Rounding::NearestEven => fraction > half || fraction == half && odd,
        Rounding::NearestAway => fraction >= half,
        Rounding::TowardZero => false,
        Rounding::Up => !negative && fraction != 0,
        Rounding::Down => negative && fraction != 0,
        Rounding::Stochastic { bits: random_bits } => {
            let n = if random_bits > 32 { 32 } else { random_bits as u32 };
            let cut = (fraction << n) >> bits; // `fraction` has at most 24 bits
            let mask = (1u64 << n) - 1;
            cut + (random as u64 & mask) > mask
        }
    };
    base + whole - hidden + up as u64
}

const fn with_sign(code: u32, negative: bool, format: Format) -> u32 {
    if !negative {
        return code;
    }
    match format.specials() {
        Specials::Integer => code.wrapping_neg() & ((1 << format.bits()) - 1),
        Specials::Fnuz if code == 0 => 0,
        _ => code | format.sign_bit(),
    }
}

/// The value of a code, exact. Bits above [`Format::bits`] are ignored.
///
/// A NaN keeps its sign (if the format has one for it) and becomes the quiet NaN without payload.
/// [`Format::F32`] is a copy.
///
/// ```
/// use onesigma_format::{Format, decode};
/// assert_eq!(decode(0x7e, Format::E4M3), 448.0);
/// ```
#[inline]
pub const fn decode(code: u32, format: Format) -> f32 {
    if format.is_f32() {
        return f32::from_bits(code);
    }
    let code = code & ((1 << format.bits()) - 1);
    let negative = code & format.sign_bit() != 0;
    let magnitude = code & !format.sign_bit();
    let p = format.mantissa_bits();
    let value = match format.specials() {
        Specials::Integer => {
            let value = code as i32 - if negative { 1 << format.bits() } else { 0 };
            return (value as f64 * pow2(-format.bias())) as f32;
        }
        Specials::Fnuz if code == format.sign_bit() => return f32::from_bits(0x7fc0_0000),
        _ if magnitude > format.max_code() => {
            let infinite = format.has_infinity() && magnitude == format.max_code() + 1;
            let bits = if infinite { INFINITY } else { 0x7fc0_0000 };
            return f32::from_bits(bits | (negative as u32) << 31);
        }
        Specials::Scale => pow2(code as i32 - format.bias()),
        _ => {
            let exponent = (magnitude >> p) as i32;
            let mantissa = magnitude & ((1 << p) - 1);
            if exponent == 0 {
                mantissa as f64 * pow2(format.quantum_exponent())
            } else {
                (mantissa | 1 << p) as f64 * pow2(exponent - format.bias() - p as i32)
            }
        }
    };
    let value = value as f32;
    if negative { -value } else { value }
}
