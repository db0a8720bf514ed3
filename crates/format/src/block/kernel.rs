//! The inner loops of block formats, compiled once per instruction set.
#![allow(unsafe_code)] // calls of functions whose instruction set was detected

use super::BlockFormat;
use crate::{
    Conversion, Format,
    bulk::{
        lane,
        plan::{DecodePlan, EncodePlan},
    },
    isa::per_isa,
};

/// Scales worked on at once.
pub(super) const GROUP: usize = 64;

const INFINITY: u32 = 0x7f80_0000;
/// f32 bits of 2^-127.
const SMALLEST_POWER: u32 = 0x0040_0000;
pub(super) const OTHER: u8 = lane::NEAREST_EVEN_BY_ADDITION;
pub(super) const FAST: u8 = lane::NEAREST_EVEN_BY_ADDITION + lane::PLAIN;

/// How scales follow from largest magnitudes.
#[derive(Clone, Copy)]
pub(super) enum ScaleRule {
    /// A power of two that brings the largest magnitude to this exponent.
    Power { exponent: u32 },
    /// A rounded quotient by `unit` = largest element value · tensor scale.
    Quotient { unit: f32, tensor_scale: f32, encode: EncodePlan, decode: DecodePlan },
}

impl ScaleRule {
    /// `None` never happens for the named block formats.
    pub fn new(format: BlockFormat, tensor_scale: f32) -> Option<Self> {
        if format.has_power_scale() {
            return Some(Self::Power { exponent: format.element_exponent() as u32 });
        }
        Some(Self::Quotient {
            unit: format.element().max() as f32 * tensor_scale,
            tensor_scale,
            encode: EncodePlan::new(format.scale(), Conversion::SATURATE)?,
            decode: DecodePlan::new(format.scale())?,
        })
    }
}

/// Scale codes and the factors of the values, from largest magnitudes given as f32 bits.
#[inline(always)]
fn scales_body(rule: &ScaleRule, largest: &[u32], codes: &mut [u8], factors: &mut [f32]) {
    let work = largest.iter().zip(codes).zip(factors);
    match *rule {
        ScaleRule::Power { exponent } => {
            for ((&largest, code), factor) in work {
                let field = largest >> 23;
                let power = field.saturating_sub(exponent);
                *code = if field == 255 { 255 } else { power as u8 };
                let inverse = (254 - power.min(254)) << 23;
                *factor = f32::from_bits(if power >= 254 { SMALLEST_POWER } else { inverse });
            }
        }
        ScaleRule::Quotient { unit, tensor_scale, encode, decode } => {
            for ((&largest, code), factor) in work {
                let quotient = f32::from_bits(largest) / unit;
                let scale = lane::encode::<FAST>(quotient.to_bits(), 0, &encode);
                *code = if largest >= INFINITY { encode.nan as u8 } else { scale as u8 };
                let step = f32::from_bits(lane::decode(scale, &decode)) * tensor_scale;
                *factor = if step >= f32::MIN_POSITIVE { 1.0 / step } else { 0.0 };
            }
        }
    }
}

per_isa! {
    pub(super) fn scales<>(
        rule: &ScaleRule, largest: &[u32], codes: &mut [u8], factors: &mut [f32],
    ) = scales_body;
}

#[inline(always)]
fn largest_body<const N: usize>(src: &[[f32; N]], largest: &mut [u32]) {
    for (block, largest) in src.iter().zip(largest) {
        // Opaque, so that the compiler vectorises within a block, not across with gathers.
        let block = core::hint::black_box(block);
        let mut lanes = [0_u32; 16];
        for part in block.as_chunks::<16>().0 {
            for lane in 0..16 {
                lanes[lane] = lanes[lane].max(part[lane].to_bits() & 0x7fff_ffff);
            }
        }
        *largest = lanes.into_iter().fold(0, u32::max);
    }
}

#[inline(always)]
fn scale_body<const N: usize>(
    rule: &ScaleRule,
    src: &[[f32; N]],
    codes: &mut [u8],
    scaled: &mut [[f32; N]],
) {
    let (mut largest, mut factors) = ([0; GROUP], [0.0; GROUP]);
    largest_body(src, &mut largest);
    scales_body(rule, &largest[..src.len()], codes, &mut factors);
    for ((block, scaled), factor) in src.iter().zip(scaled).zip(&factors) {
        let block = core::hint::black_box(block); // as above
        for (value, scaled) in block.iter().zip(scaled) {
            *scaled = value * factor;
        }
    }
}

per_isa! {
    /// Chooses scales for at most [`GROUP`] blocks and multiplies by their inverses.
    pub(super) fn scale_blocks<const N: usize>(
        rule: &ScaleRule, src: &[[f32; N]], codes: &mut [u8], scaled: &mut [[f32; N]],
    ) = scale_body;
}

#[inline(always)]
fn encode_body<const LANE: u8, const N: usize>(
    rule: &ScaleRule,
    plan: &EncodePlan,
    src: &[[f32; N]],
    scales: &mut [u8],
    codes: &mut [[u8; N]],
) {
    let plan = *plan;
    let (mut largest, mut factors) = ([0; GROUP], [0.0; GROUP]);
    largest_body(src, &mut largest);
    scales_body(rule, &largest[..src.len()], scales, &mut factors);
    for ((block, codes), factor) in src.iter().zip(codes).zip(&factors) {
        for (value, code) in block.iter().zip(codes) {
            *code = lane::encode::<LANE>((value * factor).to_bits(), 0, &plan) as u8;
        }
    }
}

per_isa! {
    /// Scales and encodes at most [`GROUP`] blocks, nearest-even.
    pub(super) fn encode_nearest_even<const LANE: u8, const N: usize>(
        rule: &ScaleRule,
        plan: &EncodePlan,
        src: &[[f32; N]],
        scales: &mut [u8],
        codes: &mut [[u8; N]],
    ) = encode_body;
}

#[inline(always)]
fn accumulate_body(row: &[f32], largest: &mut [u32]) {
    for (value, largest) in row.iter().zip(largest) {
        *largest = (*largest).max(value.to_bits() & 0x7fff_ffff);
    }
}

per_isa! {
    /// Largest magnitudes of columns, one row at a time.
    pub(super) fn accumulate<>(row: &[f32], largest: &mut [u32]) = accumulate_body;
}

#[inline(always)]
fn multiply_body(row: &[f32], factors: &[f32], scaled: &mut [f32]) {
    for ((value, factor), scaled) in row.iter().zip(factors).zip(scaled) {
        *scaled = value * factor;
    }
}

per_isa! {
    /// A row times one factor for each column.
    pub(super) fn multiply<>(row: &[f32], factors: &[f32], scaled: &mut [f32]) = multiply_body;
}

#[inline(always)]
fn decode_body<const N: usize>(
    plan: &DecodePlan,
    factors: &[f32],
    codes: &[[u8; N]],
    dst: &mut [[f32; N]],
) {
    let plan = *plan;
    for ((codes, dst), factor) in codes.iter().zip(dst).zip(factors) {
        for (code, value) in codes.iter().zip(dst) {
            *value = f32::from_bits(lane::decode(u32::from(*code), &plan)) * factor;
        }
    }
}

per_isa! {
    /// Decodes full blocks, each with its factor.
    pub(super) fn decode_blocks<const N: usize>(
        plan: &DecodePlan, factors: &[f32], codes: &[[u8; N]], dst: &mut [[f32; N]],
    ) = decode_body;
}

#[inline(always)]
fn factors_body(tensor_scale: f32, codes: &[u8], factors: &mut [f32]) {
    for (&code, factor) in codes.iter().zip(factors) {
        let bits = match code {
            0 => SMALLEST_POWER,
            255 => 0x7fc0_0000,
            _ => u32::from(code) << 23,
        };
        *factor = f32::from_bits(bits) * tensor_scale;
    }
}

per_isa! {
    /// E8M0 scales times the tensor scale.
    pub(super) fn power_factors<>(
        tensor_scale: f32, codes: &[u8], factors: &mut [f32],
    ) = factors_body;
}

/// The lane of the fused nearest-even loop that serves this element format, if one does.
pub(super) fn lane_for(element: Format, plan: &EncodePlan) -> Option<Lane> {
    if !plan.addition_is_exact() || element.bytes() != 1 {
        return None;
    }
    // A NaN never gets here, so that the formats without NaN are plain too.
    let plain = plan.complement == 0 && plan.unsigned_code != 0;
    Some(if plain { Lane::Plain } else { Lane::Other })
}

/// Which nearest-even lane the fused loop uses.
pub(super) enum Lane {
    /// Sign and magnitude.
    Plain,
    /// Two's complement, or no negative zero.
    Other,
}

#[inline(always)]
fn pack_body(bits: u32, codes: &[u8], bytes: &mut [u8]) {
    super::pack::pack(bits, codes, bytes);
}

#[inline(always)]
fn unpack_body(bits: u32, bytes: &[u8], codes: &mut [u8]) {
    super::pack::unpack(bits, bytes, codes);
}

per_isa! {
    /// Packs codes from a byte border on.
    pub(super) fn pack<>(bits: u32, codes: &[u8], bytes: &mut [u8]) = pack_body;
}

per_isa! {
    /// Unpacks codes from a byte border on.
    pub(super) fn unpack<>(bits: u32, bytes: &[u8], codes: &mut [u8]) = unpack_body;
}
