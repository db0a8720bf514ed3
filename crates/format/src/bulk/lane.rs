//! One element of the bulk codecs, without branches, so that loops over it become vector code.
#![allow(unsafe_code)] // conversions to integers that cannot overflow

use super::plan::{DecodePlan, EncodePlan};

pub(crate) const NEAREST_EVEN: u8 = 0;
pub(crate) const NEAREST_AWAY: u8 = 1;
pub(crate) const TOWARD_ZERO: u8 = 2;
pub(crate) const UP: u8 = 3;
pub(crate) const DOWN: u8 = 4;
pub(crate) const STOCHASTIC: u8 = 5;
/// Nearest-even by f32 addition; see [`EncodePlan::addition_is_exact`].
pub(crate) const NEAREST_EVEN_BY_ADDITION: u8 = 6;
/// Nearest-even where the format has f32's exponent range.
pub(crate) const NEAREST_EVEN_BY_SHIFT: u8 = 7;
/// [`STOCHASTIC`] for formats far above f32's subnormals; see [`EncodePlan::is_far`].
pub(crate) const STOCHASTIC_FAR: u8 = 8;
/// [`STOCHASTIC_FAR`] with f32 arithmetic, where a vector unit converts to u32.
pub(crate) const STOCHASTIC_BY_FLOAT: u8 = 9;
/// Added to a rule: the sign is a bit of its own and zero has it too, as in most formats.
pub(crate) const PLAIN: u8 = 16;

const INFINITY: u32 = 0x7f80_0000;

/// Code of the f32 with these bits. `random` holds the random bits from the top down.
#[inline(always)]
pub(crate) fn encode<const RULE: u8>(bits: u32, random: u32, plan: &EncodePlan) -> u32 {
    let rule = RULE % PLAIN;
    let absolute = bits & 0x7fff_ffff;
    let negative = ((bits as i32) >> 31) as u32; // all ones or 0
    let directed = matches!(rule, TOWARD_ZERO | UP | DOWN);
    let clamp = if directed && negative != 0 { plan.clamp_negative } else { plan.clamp };
    let clamped = absolute.min(clamp);
    let code = match rule {
        NEAREST_EVEN_BY_ADDITION => nearest_even_by_addition(clamped, plan),
        NEAREST_EVEN_BY_SHIFT => nearest_even_by_shift(clamped, plan),
        STOCHASTIC => stochastic(split(clamped, plan), random),
        STOCHASTIC_FAR => stochastic(split_far(clamped, plan), random),
        STOCHASTIC_BY_FLOAT => stochastic_by_float(clamped, random, plan),
        NEAREST_EVEN => by_integers::<NEAREST_EVEN>(clamped, negative, plan),
        NEAREST_AWAY => by_integers::<NEAREST_AWAY>(clamped, negative, plan),
        TOWARD_ZERO => by_integers::<TOWARD_ZERO>(clamped, negative, plan),
        UP => by_integers::<UP>(clamped, negative, plan),
        _ => by_integers::<DOWN>(clamped, negative, plan),
    };
    let code = if directed && absolute == INFINITY { plan.infinity } else { code };
    if RULE >= PLAIN {
        let code = if absolute > INFINITY { plan.nan } else { code };
        return code | (bits >> plan.sign_shift & plan.sign);
    }
    let sign = if code == plan.unsigned_code { 0 } else { negative & plan.sign };
    let twos = negative & plan.complement;
    let code = ((code ^ twos).wrapping_sub(twos) & plan.mask) | sign;
    if absolute > INFINITY { plan.nan | (negative & plan.nan_sign) } else { code }
}

/// Magnitude code by the rounding of f32 addition: adding a power of two whose last place is the
/// quantum leaves the value counted in quanta in the low bits.
#[inline(always)]
fn nearest_even_by_addition(absolute: u32, plan: &EncodePlan) -> u32 {
    let exponent = (absolute & INFINITY).max(plan.minimum_field << 23);
    let power = exponent.wrapping_add(plan.dropped << 23);
    let sum = (f32::from_bits(absolute) + f32::from_bits(power)).to_bits();
    // whole + base with whole = sum - power and base = (exponent - minimum) >> dropped
    let offset = (plan.dropped << 23).wrapping_add(plan.minimum_field << (23 - plan.dropped));
    (exponent >> plan.dropped).wrapping_sub(exponent).wrapping_add(sum).wrapping_sub(offset)
}

/// Magnitude code where f32 and the format are subnormal together.
#[inline(always)]
fn nearest_even_by_shift(absolute: u32, plan: &EncodePlan) -> u32 {
    let odd = absolute >> plan.dropped & 1;
    (absolute + odd + ((1 << (plan.dropped - 1)) - 1)) >> plan.dropped
}

/// Significand with the hidden bit, the code below its integer part, and how far to shift it.
#[inline(always)]
fn split(absolute: u32, plan: &EncodePlan) -> (u32, u32, u32) {
    let hidden = if absolute >= 0x80_0000 { 0x80_0000 } else { 0 };
    let significand = (absolute & 0x7f_ffff) | hidden;
    let field = (absolute >> 23).max(1);
    let top = field.max(plan.minimum_field);
    let base = (top - plan.minimum_field) << plan.mantissa_bits;
    (significand, base, plan.dropped + (top - field))
}

/// [`split`] where whatever f32 holds as subnormal is shifted away, so that the hidden bit does not
/// matter there.
#[inline(always)]
fn split_far(absolute: u32, plan: &EncodePlan) -> (u32, u32, u32) {
    let significand = (absolute & 0x7f_ffff) | 0x80_0000;
    let field = absolute >> 23;
    let top = field.max(plan.minimum_field);
    let base = (top - plan.minimum_field) << plan.mantissa_bits;
    (significand, base, plan.dropped + (top - field))
}

/// The dropped bits as a 32-bit fraction; its sum with the random bits carries to go up.
#[inline(always)]
fn stochastic((significand, base, shift): (u32, u32, u32), random: u32) -> u32 {
    let left = significand.unbounded_shl(32_u32.wrapping_sub(shift)); // 0 if shift > 32
    let right = significand.unbounded_shr(shift.wrapping_sub(32)); // 0 if shift < 32
    let fraction = left | right;
    let up = fraction.wrapping_add(random) < fraction;
    base + significand.unbounded_shr(shift) + u32::from(up)
}

/// [`stochastic`] of the value counted in quanta: every step is exact in f32 but for the fraction
/// below 2^-32, which is cut.
#[inline(always)]
fn stochastic_by_float(absolute: u32, random: u32, plan: &EncodePlan) -> u32 {
    let least = plan.minimum_field << 23;
    let exponent = (absolute & INFINITY).max(least);
    let per_quantum = f32::from_bits(((254 + plan.mantissa_bits) << 23) - exponent);
    let quanta = f32::from_bits(absolute) * per_quantum;
    // SAFETY: `absolute` was cut to the format's range, so that the quotient is at least 0 and
    // below 2^(mantissa bits + 1).
    let whole = unsafe { quanta.to_int_unchecked::<i32>() };
    let rest = (quanta - whole as f32) * 4_294_967_296.0;
    // SAFETY: what remains of a truncation is in [0, 1), and f32 has no number between
    // 1 - 2^-24 and 1.
    let fraction = unsafe { rest.to_int_unchecked::<u32>() };
    let up = fraction.wrapping_add(random) < fraction;
    ((exponent - least) >> plan.dropped) + whole as u32 + u32::from(up)
}

/// Magnitude code by adding to the significand and shifting it.
#[inline(always)]
fn by_integers<const RULE: u8>(absolute: u32, negative: u32, plan: &EncodePlan) -> u32 {
    let (significand, base, shift) = split(absolute, plan);
    let shift = shift.min(25); // the significand has 24 bits
    let half = 1 << (shift - 1);
    let rest = (1 << shift) - 1;
    let add = match RULE {
        NEAREST_EVEN => half - 1 + (significand >> shift & 1),
        NEAREST_AWAY => half,
        UP => rest & !negative,
        DOWN => rest & negative,
        _ => 0,
    };
    base + ((significand + add) >> shift)
}

/// Value of a code, as f32 bits.
#[inline(always)]
pub(crate) fn decode(code: u32, plan: &DecodePlan) -> u32 {
    let magnitude = code & (plan.sign - 1);
    let normal = (magnitude << plan.shift).wrapping_add(plan.rebias);
    let subnormal = (magnitude as i32 as f32 * plan.quantum).to_bits();
    let finite = if magnitude >= plan.first_normal { normal } else { subnormal };
    let special = if magnitude == plan.infinity { INFINITY } else { 0x7fc0_0000 };
    let value = if magnitude > plan.max { special } else { finite };
    let sign = (code & plan.sign) << plan.sign_shift;
    if code == plan.nan { 0x7fc0_0000 } else { value | sign }
}
