//! The loops over lanes, compiled once per instruction set.
#![allow(unsafe_code)] // calls of functions whose instruction set was detected

use super::{
    lane,
    plan::{DecodePlan, EncodePlan},
};
use crate::{Isa, Noise, Rounding, isa::per_isa, philox};

per_isa! {
    fn encode_rule<const RULE: u8, const BYTES: usize>(
        plan: &EncodePlan, src: &[f32], dst: &mut [[u8; BYTES]],
    ) = encode_body;
}

per_isa! {
    fn encode_stochastic<const RULE: u8, const RANDOM: usize, const BYTES: usize>(
        plan: &EncodePlan, noise: Noise, src: &[f32], dst: &mut [[u8; BYTES]],
    ) = stochastic_body;
}

per_isa! {
    pub(super) fn decode_floats<const BYTES: usize>(
        plan: &DecodePlan, src: &[[u8; BYTES]], dst: &mut [f32],
    ) = decode_body;
}

per_isa! {
    pub(super) fn decode_integers<const BYTES: usize>(
        unused_bits: u32, quantum: f32, src: &[[u8; BYTES]], dst: &mut [f32],
    ) = integer_body;
}

#[inline(always)]
fn encode_body<const RULE: u8, const BYTES: usize>(
    plan: &EncodePlan,
    src: &[f32],
    dst: &mut [[u8; BYTES]],
) {
    let plan = *plan; // a copy, so that the loop keeps it in registers
    for (value, code) in src.iter().zip(dst) {
        *code = low_bytes(lane::encode::<RULE>(value.to_bits(), 0, &plan));
    }
}

/// Batches of random blocks made ahead.
const BATCHES: usize = 8;
const BATCH_BYTES: usize = 16 * philox::LANES;

#[inline(always)]
fn stochastic_body<const RULE: u8, const RANDOM: usize, const BYTES: usize>(
    plan: &EncodePlan,
    noise: Noise,
    src: &[f32],
    dst: &mut [[u8; BYTES]],
) {
    let plan = *plan;
    let per_block = 16 / RANDOM;
    let mut random = [0; BATCHES * BATCH_BYTES];
    let mut done = 0;
    while done < src.len() {
        let index = noise.offset.wrapping_add(done as u64);
        let block = index / per_block as u64;
        for (number, bytes) in random.as_chunks_mut::<BATCH_BYTES>().0.iter_mut().enumerate() {
            let mut pairs = [0; 2 * philox::LANES];
            let first = block.wrapping_add((number * philox::LANES) as u64);
            philox::batch(noise, first, &mut pairs);
            for (pair, bytes) in pairs.iter().zip(bytes.as_chunks_mut().0) {
                *bytes = pair.to_le_bytes();
            }
        }
        let skip = (index % per_block as u64) as usize;
        let draws = &random.as_chunks::<RANDOM>().0[skip..];
        let take = draws.len().min(src.len() - done);
        let part = done..done + take;
        for ((value, code), draw) in src[part.clone()].iter().zip(&mut dst[part]).zip(draws) {
            let mut bytes = [0; 4];
            bytes[4 - RANDOM..].copy_from_slice(draw);
            let draw = u32::from_le_bytes(bytes);
            *code = low_bytes(lane::encode::<RULE>(value.to_bits(), draw, &plan));
        }
        done += take;
    }
}

#[inline(always)]
fn decode_body<const BYTES: usize>(plan: &DecodePlan, src: &[[u8; BYTES]], dst: &mut [f32]) {
    let plan = *plan;
    for (code, value) in src.iter().zip(dst) {
        let mut bytes = [0; 4];
        bytes[..BYTES].copy_from_slice(code);
        *value = f32::from_bits(lane::decode(u32::from_le_bytes(bytes), &plan));
    }
}

#[inline(always)]
fn integer_body<const BYTES: usize>(
    unused_bits: u32,
    quantum: f32,
    src: &[[u8; BYTES]],
    dst: &mut [f32],
) {
    for (code, value) in src.iter().zip(dst) {
        let mut bytes = [0; 4];
        bytes[..BYTES].copy_from_slice(code);
        let code = u32::from_le_bytes(bytes) << unused_bits;
        *value = (code as i32 >> unused_bits) as f32 * quantum;
    }
}

#[inline(always)]
fn low_bytes<const BYTES: usize>(code: u32) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    bytes.copy_from_slice(&code.to_le_bytes()[..BYTES]);
    bytes
}

/// Encodes into codes of `BYTES` bytes.
pub(super) fn encode<const BYTES: usize>(
    isa: Isa,
    rounding: Rounding,
    noise: Noise,
    plan: &EncodePlan,
    src: &[f32],
    dst: &mut [[u8; BYTES]],
) {
    use lane::{
        DOWN, NEAREST_AWAY, NEAREST_EVEN, NEAREST_EVEN_BY_ADDITION, NEAREST_EVEN_BY_SHIFT, PLAIN,
        STOCHASTIC, STOCHASTIC_BY_FLOAT, STOCHASTIC_FAR, TOWARD_ZERO, UP,
    };
    let plain = plan.is_plain();
    let run = match rounding {
        Rounding::NearestEven if plain && plan.is_cut_f32() => {
            encode_rule::<{ NEAREST_EVEN_BY_SHIFT + PLAIN }, BYTES>
        }
        Rounding::NearestEven if plain && plan.addition_is_exact() => {
            encode_rule::<{ NEAREST_EVEN_BY_ADDITION + PLAIN }, BYTES>
        }
        Rounding::NearestEven if plan.addition_is_exact() => {
            encode_rule::<NEAREST_EVEN_BY_ADDITION, BYTES>
        }
        Rounding::NearestEven => encode_rule::<NEAREST_EVEN, BYTES>,
        Rounding::NearestAway => encode_rule::<NEAREST_AWAY, BYTES>,
        Rounding::TowardZero => encode_rule::<TOWARD_ZERO, BYTES>,
        Rounding::Up => encode_rule::<UP, BYTES>,
        Rounding::Down => encode_rule::<DOWN, BYTES>,
        Rounding::Stochastic { bits } => {
            if plain && isa == Isa::Avx512 && plan.counts_in_floats() {
                let run = match bits {
                    8 => encode_stochastic::<{ STOCHASTIC_BY_FLOAT + PLAIN }, 1, BYTES>,
                    16 => encode_stochastic::<{ STOCHASTIC_BY_FLOAT + PLAIN }, 2, BYTES>,
                    _ => encode_stochastic::<{ STOCHASTIC_BY_FLOAT + PLAIN }, 4, BYTES>,
                };
                return run(isa, plan, noise, src, dst);
            }
            let run = match (bits, plain, plan.is_far()) {
                (8, true, true) => encode_stochastic::<{ STOCHASTIC_FAR + PLAIN }, 1, BYTES>,
                (16, true, true) => encode_stochastic::<{ STOCHASTIC_FAR + PLAIN }, 2, BYTES>,
                (_, true, true) => encode_stochastic::<{ STOCHASTIC_FAR + PLAIN }, 4, BYTES>,
                (8, true, false) => encode_stochastic::<{ STOCHASTIC + PLAIN }, 1, BYTES>,
                (16, true, false) => encode_stochastic::<{ STOCHASTIC + PLAIN }, 2, BYTES>,
                (_, true, false) => encode_stochastic::<{ STOCHASTIC + PLAIN }, 4, BYTES>,
                (8, false, _) => encode_stochastic::<STOCHASTIC, 1, BYTES>,
                (16, false, _) => encode_stochastic::<STOCHASTIC, 2, BYTES>,
                (_, false, _) => encode_stochastic::<STOCHASTIC, 4, BYTES>,
            };
            return run(isa, plan, noise, src, dst);
        }
    };
    run(isa, plan, src, dst);
}
