//! One element of the bulk codecs, without branches, so that loops over it become vector code.

use super::plan::{DecodePlan, EncodePlan};

pub(super) const NEAREST_EVEN: u8 = 0;
pub(super) const NEAREST_AWAY: u8 = 1;
pub(super) const TOWARD_ZERO: u8 = 2;
pub(super) const UP: u8 = 3;
pub(super) const DOWN: u8 = 4;
pub(super) const STOCHASTIC: u8 = 5;
/// Nearest-even by f32 addition; see [`EncodePlan::addition_is_exact`].
pub(super) const NEAREST_EVEN_BY_ADDITION: u8 = 6;

const INFINITY: u32 = 0x7f80_0000;

/// Code of the f32 with these bits. `random` holds the random bits from the top down.
#[inline(always)]
pub(super) fn encode<const RULE: u8>(bits: u32, random: u32, plan: &EncodePlan) -> u32 {
    let absolute = bits & 0x7fff_ffff;
    let negative = ((bits as i32) >> 31) as u32; // all ones or 0
    let clamped = absolute.min(plan.clamp);
    let rounded = if RULE == NEAREST_EVEN_BY_ADDITION {
        nearest_even(clamped, plan)
    } else {
        by_integers::<RULE>(clamped, negative, random, plan)
    };
    let limit = plan.limit_positive ^ (negative & (plan.limit_positive ^ plan.limit_negative));
    let code = rounded.min(limit);
    let code = if matches!(RULE, TOWARD_ZERO | UP | DOWN) && absolute == INFINITY {
        plan.infinity
    } else {
        code
    };
    let sign = if code == plan.unsigned_code { 0 } else { negative & plan.sign };
    let twos = negative & plan.complement;
    let code = ((code ^ twos).wrapping_sub(twos) & plan.mask) | sign;
    if absolute > INFINITY { plan.nan | (negative & plan.nan_sign) } else { code }
}

/// Magnitude code by the rounding of f32 addition: adding a power of two whose last place is the
/// quantum leaves the value counted in quanta in the low bits.
#[inline(always)]
fn nearest_even(absolute: u32, plan: &EncodePlan) -> u32 {
    let minimum = plan.minimum_field << 23;
    let exponent = (absolute & INFINITY).max(minimum);
    let magic = exponent.wrapping_add(plan.dropped << 23);
    let sum = (f32::from_bits(absolute) + f32::from_bits(magic)).to_bits();
    let whole = sum.wrapping_sub(magic);
    ((exponent - minimum) >> plan.dropped).wrapping_add(whole)
}

/// Magnitude code by shifting the significand, under any rule.
#[inline(always)]
fn by_integers<const RULE: u8>(
    absolute: u32,
    negative: u32,
    random: u32,
    plan: &EncodePlan,
) -> u32 {
    let hidden = if absolute >= 0x80_0000 { 0x80_0000 } else { 0 };
    let significand = (absolute & 0x7f_ffff) | hidden;
    let field = (absolute >> 23).max(1);
    let top = field.max(plan.minimum_field);
    let base = (top - plan.minimum_field) << plan.mantissa_bits;
    let shift = plan.dropped + (top - field);
    if RULE == STOCHASTIC {
        // The dropped bits as a 32-bit fraction; its sum with the random bits carries to go up.
        let fraction = if shift <= 32 {
            significand.unbounded_shl(32 - shift.min(32))
        } else {
            significand.unbounded_shr(shift.wrapping_sub(32))
        };
        let (_, up) = fraction.overflowing_add(random);
        return base + significand.unbounded_shr(shift) + u32::from(up);
    }
    let shift = shift.min(25); // the significand has 24 bits
    let half = 1 << (shift - 1);
    let rest = (1 << shift) - 1;
    let add = match RULE {
        NEAREST_EVEN => half - 1 + ((base + (significand >> shift)) & 1),
        NEAREST_AWAY => half,
        UP => rest & !negative,
        DOWN => rest & negative,
        _ => 0,
    };
    base + ((significand + add) >> shift)
}

/// Value of a code, as f32 bits.
#[inline(always)]
pub(super) fn decode(code: u32, plan: &DecodePlan) -> u32 {
    let magnitude = code & (plan.sign - 1);
    let normal = (magnitude << plan.shift).wrapping_add(plan.rebias);
    let subnormal = (magnitude as i32 as f32 * plan.quantum).to_bits();
    let finite = if magnitude >= plan.first_normal { normal } else { subnormal };
    let special = if magnitude == plan.infinity { INFINITY } else { 0x7fc0_0000 };
    let value = if magnitude > plan.max { special } else { finite };
    let sign = (code & plan.sign) << plan.sign_shift;
    if code == plan.nan { 0x7fc0_0000 } else { value | sign }
}
