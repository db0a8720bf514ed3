//! The loops over lanes, compiled once per instruction set.
#![allow(unsafe_code)] // calls of functions whose instruction set was detected

use super::{
    lane,
    plan::{DecodePlan, EncodePlan},
};
use crate::{Error, Noise, Rounding, philox};

/// An instruction set that the bulk codecs are compiled for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Isa {
    /// What the target always has: SSE2 on x86-64, NEON on AArch64.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VBMI.
    Avx512,
}

impl Isa {
    /// Every instruction set that the crate knows.
    pub const ALL: [Self; 3] = [Self::Portable, Self::Avx2, Self::Avx512];

    /// The name, as in `"avx2"`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// The best that this machine has. Without the `std` feature: that the build assumes.
    #[inline]
    pub fn detect() -> Self {
        if Self::Avx512.is_available() {
            Self::Avx512
        } else if Self::Avx2.is_available() {
            Self::Avx2
        } else {
            Self::Portable
        }
    }

    /// Whether this machine has it.
    #[inline]
    pub fn is_available(self) -> bool {
        #[cfg(all(target_arch = "x86_64", feature = "std"))]
        return match self {
            Self::Portable => true,
            Self::Avx2 => {
                std::arch::is_x86_feature_detected!("avx2")
                    && std::arch::is_x86_feature_detected!("fma")
                    && std::arch::is_x86_feature_detected!("f16c")
            }
            Self::Avx512 => {
                std::arch::is_x86_feature_detected!("avx512f")
                    && std::arch::is_x86_feature_detected!("avx512bw")
                    && std::arch::is_x86_feature_detected!("avx512dq")
                    && std::arch::is_x86_feature_detected!("avx512vl")
                    && std::arch::is_x86_feature_detected!("avx512vbmi")
            }
        };
        #[cfg(not(all(target_arch = "x86_64", feature = "std")))]
        return match self {
            Self::Portable => true,
            Self::Avx2 => {
                cfg!(all(target_feature = "avx2", target_feature = "fma", target_feature = "f16c"))
            }
            Self::Avx512 => cfg!(all(
                target_feature = "avx512f",
                target_feature = "avx512bw",
                target_feature = "avx512dq",
                target_feature = "avx512vl",
                target_feature = "avx512vbmi"
            )),
        };
    }

    pub(super) fn check(self) -> Result<(), Error> {
        if self.is_available() { Ok(()) } else { Err(Error::Isa { isa: self.name() }) }
    }
}

/// Defines `$name(isa, …)`, which runs `$body` compiled for that instruction set.
macro_rules! per_isa {
    ($(#[$meta:meta])* fn $name:ident<$(const $constant:ident: $type:ty),*>(
        $($argument:ident: $argument_type:ty),* $(,)?
    ) = $body:ident;) => {
        $(#[$meta])*
        fn $name<$(const $constant: $type),*>(isa: Isa, $($argument: $argument_type),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2<$(const $constant: $type),*>($($argument: $argument_type),*) {
                $body::<$($constant),*>($($argument),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
            fn avx512<$(const $constant: $type),*>($($argument: $argument_type),*) {
                $body::<$($constant),*>($($argument),*)
            }
            debug_assert!(isa.is_available());
            match isa {
                // SAFETY: the public functions checked that the machine has the instruction set.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => unsafe { avx2::<$($constant),*>($($argument),*) },
                // SAFETY: the public functions checked that the machine has the instruction set.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => unsafe { avx512::<$($constant),*>($($argument),*) },
                _ => $body::<$($constant),*>($($argument),*),
            }
        }
    };
}

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
    fn decode_floats<const BYTES: usize>(
        plan: &DecodePlan, src: &[[u8; BYTES]], dst: &mut [f32],
    ) = decode_body;
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
        STOCHASTIC, TOWARD_ZERO, UP,
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
            let run = match (bits, plain) {
                (8, true) => encode_stochastic::<{ STOCHASTIC + PLAIN }, 1, BYTES>,
                (16, true) => encode_stochastic::<{ STOCHASTIC + PLAIN }, 2, BYTES>,
                (_, true) => encode_stochastic::<{ STOCHASTIC + PLAIN }, 4, BYTES>,
                (8, false) => encode_stochastic::<STOCHASTIC, 1, BYTES>,
                (16, false) => encode_stochastic::<STOCHASTIC, 2, BYTES>,
                (_, false) => encode_stochastic::<STOCHASTIC, 4, BYTES>,
            };
            return run(isa, plan, noise, src, dst);
        }
    };
    run(isa, plan, src, dst);
}

/// Decodes codes of `BYTES` bytes.
pub(super) fn decode<const BYTES: usize>(
    isa: Isa,
    plan: &DecodePlan,
    src: &[[u8; BYTES]],
    dst: &mut [f32],
) {
    decode_floats::<BYTES>(isa, plan, src, dst);
}
