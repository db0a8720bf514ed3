//! Codes of fewer than 8 bits, packed without gaps from the low bit up.
#![allow(unsafe_code)] // one AVX-512 loop

use crate::Isa;

/// Puts `code` at element `index`; the bits there must be 0.
#[inline]
pub(super) fn put(bytes: &mut [u8], bits: u32, index: usize, code: u8) {
    let first = index * bits as usize;
    let placed = u32::from(code) << (first % 8);
    bytes[first / 8] |= placed as u8;
    if placed > 0xff {
        bytes[first / 8 + 1] |= (placed >> 8) as u8;
    }
}

/// The code at element `index`.
#[inline]
pub(super) fn get(bytes: &[u8], bits: u32, index: usize) -> u8 {
    let first = index * bits as usize;
    let low = u32::from(bytes[first / 8]);
    let high = bytes.get(first / 8 + 1).map_or(0, |&byte| u32::from(byte));
    ((low | high << 8) >> (first % 8)) as u8 & ((1 << bits) - 1)
}

/// Packs codes that begin at a byte border; their number may be odd. For 4 and 6 bits.
#[inline(always)]
pub(super) fn pack(bits: u32, codes: &[u8], bytes: &mut [u8]) {
    let whole = if bits == 4 {
        let (pairs, _) = codes.as_chunks::<2>();
        for (pair, byte) in pairs.iter().zip(&mut *bytes) {
            let pair = u16::from_le_bytes(*pair);
            *byte = (pair | pair >> 4) as u8;
        }
        pairs.len() * 2
    } else {
        let (fours, _) = codes.as_chunks::<4>();
        for (four, three) in fours.iter().zip(bytes.as_chunks_mut::<3>().0) {
            let four = u32::from_le_bytes(*four);
            let packed = (four & 0x3f)
                | (four >> 2 & 0xfc0)
                | (four >> 4 & 0x3_f000)
                | (four >> 6 & 0xfc_0000);
            three.copy_from_slice(&packed.to_le_bytes()[..3]);
        }
        fours.len() * 4
    };
    bytes[(whole * bits as usize) / 8..].fill(0);
    for index in whole..codes.len() {
        put(bytes, bits, index, codes[index]);
    }
}

/// Unpacks codes that begin at a byte border. For 4 and 6 bits.
#[inline(always)]
pub(super) fn unpack(bits: u32, bytes: &[u8], codes: &mut [u8]) {
    let whole = if bits == 4 {
        let (pairs, _) = codes.as_chunks_mut::<2>();
        let count = pairs.len() * 2;
        for (pair, byte) in pairs.iter_mut().zip(bytes) {
            let byte = u16::from(*byte);
            *pair = ((byte | byte << 4) & 0x0f0f).to_le_bytes();
        }
        count
    } else {
        let (fours, _) = codes.as_chunks_mut::<4>();
        let count = fours.len() * 4;
        for (four, three) in fours.iter_mut().zip(bytes.as_chunks::<3>().0) {
            let packed = u32::from_le_bytes([three[0], three[1], three[2], 0]);
            let spread = (packed & 0x3f)
                | (packed & 0xfc0) << 2
                | (packed & 0x3_f000) << 4
                | (packed & 0xfc_0000) << 6;
            *four = spread.to_le_bytes();
        }
        count
    };
    for index in whole..codes.len() {
        codes[index] = get(bytes, bits, index);
    }
}

/// Packs as many 6-bit codes as the widest vectors take whole, and says how many those were.
pub(super) fn pack_six(isa: Isa, codes: &[u8], bytes: &mut [u8]) -> usize {
    let _ = (isa, codes, &bytes);
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512 && isa.is_available() {
        // SAFETY: the line above.
        return unsafe { pack_six_avx512(codes, bytes) };
    }
    0
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn pack_six_avx512(codes: &[u8], bytes: &mut [u8]) -> usize {
    use core::arch::x86_64::{
        _mm512_and_si512, _mm512_loadu_si512, _mm512_mask_storeu_epi8, _mm512_or_si512,
        _mm512_permutexvar_epi8, _mm512_set1_epi64, _mm512_srli_epi64,
    };

    let (blocks, _) = codes.as_chunks::<64>();
    let (targets, _) = bytes.as_chunks_mut::<48>();
    let order: [u8; 64] =
        core::array::from_fn(|i| if i < 48 { (i / 6 * 8 + i % 6) as u8 } else { 0 });
    // SAFETY: `order` has 64 bytes.
    let order = unsafe { _mm512_loadu_si512(order.as_ptr().cast()) };
    let mask = |bits: u64| _mm512_set1_epi64(bits as i64);
    let (low1, high1) = (mask(0x003f_003f_003f_003f), mask(0x0fc0_0fc0_0fc0_0fc0));
    let (low2, high2) = (mask(0x0000_0fff_0000_0fff), mask(0x00ff_f000_00ff_f000));
    let (low3, high3) = (mask(0x0000_0000_00ff_ffff), mask(0x0000_ffff_ff00_0000));
    for (block, target) in blocks.iter().zip(&mut *targets) {
        // SAFETY: `block` has 64 bytes.
        let six = unsafe { _mm512_loadu_si512(block.as_ptr().cast()) };
        // Neighbours close up: 8-bit lanes of 6 bits, 16 of 12, 32 of 24, 64 of 48.
        let twelve = _mm512_or_si512(
            _mm512_and_si512(six, low1),
            _mm512_and_si512(_mm512_srli_epi64::<2>(six), high1),
        );
        let twenty_four = _mm512_or_si512(
            _mm512_and_si512(twelve, low2),
            _mm512_and_si512(_mm512_srli_epi64::<4>(twelve), high2),
        );
        let all = _mm512_or_si512(
            _mm512_and_si512(twenty_four, low3),
            _mm512_and_si512(_mm512_srli_epi64::<8>(twenty_four), high3),
        );
        let packed = _mm512_permutexvar_epi8(order, all);
        // SAFETY: `target` has the 48 bytes that the mask lets through.
        unsafe { _mm512_mask_storeu_epi8(target.as_mut_ptr().cast(), (1 << 48) - 1, packed) };
    }
    blocks.len().min(targets.len()) * 64
}
