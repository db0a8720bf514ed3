//! Conversions of short runs between codes and f32, as kernels need them.
//!
//! Bit for bit the codecs of `onesigma-format`, which serve every format and rule. The formats that
//! the hardware converts itself take one or two instructions here, since a kernel converts a few
//! hundred elements at a time in the cache, where instructions count and memory does not.

use onesigma_format::{Conversion, Format, Noise, Overflow, Rounding, decode_slice, encode_slice};

use crate::simd::Isa;

/// Decodes `out.len()` codes.
#[inline]
pub(crate) fn decode(format: Format, codes: &[u8], out: &mut [f32]) {
    assert_eq!(codes.len(), out.len() * format.bytes(), "codes and values differ in number");
    if format.is_f32() {
        // SAFETY: any four bytes are an f32, and f32 aligns bytes; as many as were asserted above.
        let bytes = unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().cast(), codes.len()) };
        bytes.copy_from_slice(codes);
        #[cfg(target_endian = "big")]
        out.iter_mut().for_each(|x| *x = f32::from_bits(x.to_bits().swap_bytes()));
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if Isa::current() >= Isa::Avx512 {
        if format == Format::F16 {
            // SAFETY: AVX-512 was found.
            return unsafe { x86::decode_f16(codes.as_chunks().0, out) };
        }
        if format == Format::BF16 {
            // SAFETY: AVX-512 was found.
            return unsafe { x86::decode_bf16(codes.as_chunks().0, out) };
        }
    }
    decode_slice(format, codes, out).expect("lengths agree");
}

/// Rounds values into codes.
#[inline]
pub(crate) fn encode(
    format: Format,
    how: Conversion,
    noise: Noise,
    values: &[f32],
    codes: &mut [u8],
) {
    assert_eq!(codes.len(), values.len() * format.bytes(), "codes and values differ in number");
    if format.is_f32() {
        #[cfg(target_endian = "little")]
        {
            // SAFETY: an f32 is any four bytes; as many as were asserted above.
            let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), codes.len()) };
            codes.copy_from_slice(bytes);
        }
        #[cfg(target_endian = "big")]
        for (value, code) in values.iter().zip(codes.as_chunks_mut::<4>().0) {
            *code = value.to_le_bytes();
        }
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if how.rounding == Rounding::NearestEven && Isa::current() >= Isa::Avx512 {
        let saturate = how.overflow == Overflow::Saturate;
        if format == Format::F16 {
            // SAFETY: AVX-512 was found.
            return unsafe { x86::encode_f16(values, codes.as_chunks_mut().0, saturate) };
        }
        if format == Format::BF16 {
            // SAFETY: AVX-512 was found.
            return unsafe { x86::encode_bf16(values, codes.as_chunks_mut().0, saturate) };
        }
        if format == Format::E4M3 {
            // SAFETY: AVX-512 was found.
            return unsafe { x86::encode_fp8::<3, 7, 0x7e, 0x7f, 0x7f>(values, codes, saturate) };
        }
        if format == Format::E5M2 {
            // SAFETY: AVX-512 was found.
            return unsafe { x86::encode_fp8::<2, 15, 0x7b, 0x7c, 0x7e>(values, codes, saturate) };
        }
    }
    encode_slice(format, how, noise, values, codes).expect("lengths agree and the rule is valid");
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// Runs `block(at, lanes)` for blocks of 16 lanes. All but the last are whole, and since the
    /// closure is inlined twice, their masks are constants: masked stores cost more.
    macro_rules! blocks {
        ($len:expr, |$at:ident, $lanes:ident| $body:expr) => {
            let len = $len;
            for $at in (0..len / 16 * 16).step_by(16) {
                let $lanes = u16::MAX;
                $body
            }
            if len % 16 > 0 {
                let $at = len / 16 * 16;
                let $lanes: __mmask16 = (1 << (len % 16)) - 1;
                $body
            }
        };
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) unsafe fn decode_f16(codes: &[[u8; 2]], out: &mut [f32]) {
        blocks!(out.len().min(codes.len()), |at, lanes| {
            // SAFETY: masked lanes lie inside both slices.
            unsafe {
                let code = _mm256_maskz_loadu_epi16(lanes, codes.as_ptr().add(at).cast());
                _mm512_mask_storeu_ps(out.as_mut_ptr().add(at), lanes, _mm512_cvtph_ps(code));
            }
        });
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) unsafe fn decode_bf16(codes: &[[u8; 2]], out: &mut [f32]) {
        blocks!(out.len().min(codes.len()), |at, lanes| {
            // SAFETY: masked lanes lie inside both slices.
            unsafe {
                let code = _mm256_maskz_loadu_epi16(lanes, codes.as_ptr().add(at).cast());
                let bits = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(code));
                _mm512_mask_storeu_epi32(out.as_mut_ptr().add(at).cast(), lanes, bits);
            }
        });
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) unsafe fn encode_f16(values: &[f32], codes: &mut [[u8; 2]], saturate: bool) {
        let limit = _mm512_set1_ps(if saturate { 65504.0 } else { f32::INFINITY });
        let lower = _mm512_sub_ps(_mm512_setzero_ps(), limit);
        blocks!(values.len().min(codes.len()), |at, lanes| {
            // SAFETY: masked lanes lie inside both slices.
            unsafe {
                let value = _mm512_maskz_loadu_ps(lanes, values.as_ptr().add(at));
                // The second operand passes through if either is NaN.
                let value = _mm512_max_ps(lower, _mm512_min_ps(limit, value));
                let code =
                    _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(value);
                let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(value, value);
                // The canonical NaN with the value's sign.
                let sign = _mm256_and_si256(code, _mm256_set1_epi16(i16::MIN));
                let quiet = _mm256_or_si256(sign, _mm256_set1_epi16(0x7e00));
                let code = _mm256_mask_blend_epi16(nan, code, quiet);
                _mm256_mask_storeu_epi16(codes.as_mut_ptr().add(at).cast(), lanes, code);
            }
        });
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) unsafe fn encode_bf16(values: &[f32], codes: &mut [[u8; 2]], saturate: bool) {
        const INFINITY: i32 = 0x7f80_0000;
        // Above the largest magnitude that rounds to a finite number, as f32 bits.
        let limit = _mm512_set1_epi32(if saturate { 0x7f7f_0000 } else { INFINITY });
        blocks!(values.len().min(codes.len()), |at, lanes| {
            // SAFETY: masked lanes lie inside both slices.
            unsafe {
                let bits = _mm512_maskz_loadu_epi32(lanes, values.as_ptr().add(at).cast());
                let magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(i32::MAX));
                let sign = _mm512_xor_si512(bits, magnitude);
                let odd =
                    _mm512_and_si512(_mm512_srli_epi32::<16>(magnitude), _mm512_set1_epi32(1));
                let bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
                let rounded = _mm512_min_epu32(_mm512_add_epi32(magnitude, bias), limit);
                let nan = _mm512_cmpgt_epu32_mask(magnitude, _mm512_set1_epi32(INFINITY));
                let quiet = _mm512_set1_epi32(0x7fc0_0000);
                let rounded = _mm512_mask_blend_epi32(nan, rounded, quiet);
                let code = _mm512_srli_epi32::<16>(_mm512_or_si512(rounded, sign));
                let to = codes.as_mut_ptr().add(at).cast();
                _mm256_mask_storeu_epi16(to, lanes, _mm512_cvtepi32_epi16(code));
            }
        });
    }

    /// A one-byte format of `MANTISSA` bits and exponents from `1 - BIAS`: its largest finite code,
    /// the code of what overflows, and of NaN, all without the sign.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) unsafe fn encode_fp8<
        const MANTISSA: u32,
        const BIAS: u32,
        const LARGEST: i32,
        const OVERFLOW: i32,
        const NAN: i32,
    >(
        values: &[f32],
        codes: &mut [u8],
        saturate: bool,
    ) {
        let shift = 23 - MANTISSA;
        // Adding 2^23 times the smallest magnitude rounds to a multiple of that, which then stands
        // in the low bits.
        let rounder = _mm512_set1_epi32(((127 + 1 - BIAS - MANTISSA + 23) << 23) as i32);
        let smallest_normal = _mm512_set1_epi32(((127 + 1 - BIAS) << 23) as i32);
        let rebias = _mm512_set1_epi32(((127 - BIAS) << MANTISSA) as i32);
        let half = _mm512_set1_epi32((1 << (shift - 1)) - 1);
        let (largest, beyond) = (
            _mm512_set1_epi32(LARGEST),
            _mm512_set1_epi32(if saturate { LARGEST } else { OVERFLOW }),
        );
        let count = _mm_cvtsi32_si128(shift as i32);
        blocks!(values.len().min(codes.len()), |at, lanes| {
            // SAFETY: masked lanes lie inside both slices.
            unsafe {
                let bits = _mm512_maskz_loadu_epi32(lanes, values.as_ptr().add(at).cast());
                let magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(i32::MAX));
                let kept = _mm512_srl_epi32(magnitude, count);
                let odd = _mm512_and_si512(kept, _mm512_set1_epi32(1));
                let rounded = _mm512_add_epi32(_mm512_add_epi32(magnitude, half), odd);
                let normal = _mm512_sub_epi32(_mm512_srl_epi32(rounded, count), rebias);
                let sum =
                    _mm512_add_ps(_mm512_castsi512_ps(magnitude), _mm512_castsi512_ps(rounder));
                let subnormal = _mm512_sub_epi32(_mm512_castps_si512(sum), rounder);
                let is_small = _mm512_cmplt_epi32_mask(magnitude, smallest_normal);
                let code = _mm512_mask_blend_epi32(is_small, normal, subnormal);
                let is_beyond = _mm512_cmpgt_epi32_mask(code, largest);
                let code = _mm512_mask_blend_epi32(is_beyond, code, beyond);
                let nan = _mm512_cmpgt_epi32_mask(magnitude, _mm512_set1_epi32(0x7f80_0000));
                let code = _mm512_mask_blend_epi32(nan, code, _mm512_set1_epi32(NAN));
                let sign = _mm512_and_si512(_mm512_srli_epi32::<24>(bits), _mm512_set1_epi32(0x80));
                let code = _mm512_cvtepi32_epi8(_mm512_or_si512(code, sign));
                _mm_mask_storeu_epi8(codes.as_mut_ptr().add(at).cast(), lanes, code);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use onesigma_format::{decode as decode_one, encode as encode_one};

    const RULES: [Conversion; 3] = [
        Conversion::SATURATE,
        Conversion::SPECIAL,
        Conversion { rounding: Rounding::TowardZero, overflow: Overflow::Saturate },
    ];

    #[test]
    fn every_code_decodes_as_the_reference_says() {
        for format in [Format::F16, Format::BF16, Format::E4M3] {
            let width = format.bytes();
            let count = 1_usize << (8 * width);
            let codes: Vec<u8> =
                (0..count).flat_map(|code| code.to_le_bytes()[..width].to_vec()).collect();
            // An odd start makes every lane see every code's neighbourhood.
            let mut out = vec![0.0; count - 3];
            decode(format, &codes[3 * width..], &mut out);
            for (i, found) in out.iter().enumerate() {
                let expected = decode_one((i + 3) as u32, format);
                let same =
                    found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
                assert!(same, "{format:?} code {}: {found} for {expected}", i + 3);
            }
        }
    }

    #[test]
    fn values_round_as_the_reference_says() {
        // All exponents, with mantissas on, beside and between the halfway points.
        let values: Vec<f32> = (0..1_u32 << 20)
            .map(|i| f32::from_bits(i << 12 | i.wrapping_mul(2_654_435_761) >> 20 & 0x3ff))
            .chain((0..1 << 19).map(|i| f32::from_bits(i << 13)))
            .chain((0..1 << 16).map(|i| f32::from_bits(i << 16 | 0x8000)))
            .collect();
        for format in [Format::F16, Format::BF16, Format::E4M3, Format::E5M2] {
            for how in RULES {
                let width = format.bytes();
                let mut codes = vec![0; values.len() * width];
                encode(format, how, Noise::default(), &values, &mut codes);
                for (value, code) in values.iter().zip(codes.chunks(width)) {
                    let found = code.iter().rev().fold(0, |all, byte| all << 8 | u32::from(*byte));
                    let expected = encode_one(*value, format, how, 0);
                    assert_eq!(found, expected, "{value:e} into {format:?} by {how:?}");
                }
            }
        }
    }
}
