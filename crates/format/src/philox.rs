//! Random bits that depend on an index only: Philox 4x32-10.
//!
//! Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, §3.3.
//!
//! Layout, the same on every backend: the key is `[seed low, seed high]`, the counter
//! `[block low, block high, tensor, step]`. The four words of block `b`, taken as 16 little-endian
//! bytes, hold the draws of width `w` bits with the indices `128/w · b` to `128/w · (b + 1) - 1`, in
//! order. Words (`w` = 32) feed [`fill_u32`], [`fill_uniform`] and [`fill_normal`]; stochastic
//! rounding takes 8, 16 or 32 bits an element.

use crate::{Noise, normal::inverse_normal};

const MULTIPLIER: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];

/// Blocks made at once, one per vector lane.
pub(crate) const LANES: usize = 16;

/// Ten rounds of Philox 4x32.
#[inline]
pub const fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    let mut round = 0;
    while round < 10 {
        let product0 = MULTIPLIER[0] as u64 * c0 as u64;
        let product1 = MULTIPLIER[1] as u64 * c2 as u64;
        c0 = (product1 >> 32) as u32 ^ c1 ^ k0;
        c1 = product1 as u32;
        c2 = (product0 >> 32) as u32 ^ c3 ^ k1;
        c3 = product0 as u32;
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
        round += 1;
    }
    [c0, c1, c2, c3]
}

/// The four words of one block of a tensor's stream; `noise.offset` plays no part.
#[inline]
pub const fn block(noise: Noise, block: u64) -> [u32; 4] {
    philox4x32_10(
        [block as u32, (block >> 32) as u32, noise.tensor, noise.step],
        [noise.seed as u32, (noise.seed >> 32) as u32],
    )
}

/// The `bits` random bits (8, 16 or 32) of element `noise.offset + index`.
#[inline]
pub const fn draw(noise: Noise, index: u64, bits: u8) -> u32 {
    let per_word = 32 / bits as u64;
    let element = noise.offset.wrapping_add(index);
    let word = element / per_word;
    let shift = (element % per_word) as u32 * bits as u32;
    let drawn = block(noise, word / 4)[(word % 4) as usize] >> shift;
    drawn & (u32::MAX >> (32 - bits as u32))
}

/// `LANES` consecutive blocks, as words in order, in pairs.
///
/// Each word has a 64-bit lane, whose high half may hold anything: that is how vector units
/// multiply 32 by 32 bits.
#[inline(always)]
pub(crate) fn batch(noise: Noise, first: u64, pairs: &mut [u64; 2 * LANES]) {
    const LOW: u64 = u32::MAX as u64;
    let (mut c0, mut c1) = ([0_u64; LANES], [0_u64; LANES]);
    let mut c2 = [noise.tensor as u64; LANES];
    let mut c3 = [noise.step as u64; LANES];
    for lane in 0..LANES {
        let block = first.wrapping_add(lane as u64);
        (c0[lane], c1[lane]) = (block, block >> 32);
    }
    let (mut k0, mut k1) = (noise.seed as u32, (noise.seed >> 32) as u32);
    for _ in 0..10 {
        for lane in 0..LANES {
            let product0 = MULTIPLIER[0] as u64 * (c0[lane] & LOW);
            let product1 = MULTIPLIER[1] as u64 * (c2[lane] & LOW);
            c0[lane] = (product1 >> 32) ^ c1[lane] ^ k0 as u64;
            c1[lane] = product1;
            c2[lane] = (product0 >> 32) ^ c3[lane] ^ k1 as u64;
            c3[lane] = product0;
        }
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    for lane in 0..LANES {
        pairs[2 * lane] = (c0[lane] & LOW) | c1[lane] << 32;
        pairs[2 * lane + 1] = (c2[lane] & LOW) | c3[lane] << 32;
    }
}

/// Calls `put(position, word)` for the words `noise.offset ..` of the stream, `count` of them.
#[inline(always)]
fn for_each_word(noise: Noise, count: usize, mut put: impl FnMut(usize, u32)) {
    let mut pairs = [0; 2 * LANES];
    let mut done = 0;
    while done < count {
        let index = noise.offset.wrapping_add(done as u64);
        batch(noise, index / 4, &mut pairs);
        let skip = (index % 4) as usize;
        let take = (4 * LANES - skip).min(count - done);
        for position in 0..take {
            let word = skip + position;
            put(done + position, (pairs[word / 2] >> (32 * (word % 2))) as u32);
        }
        done += take;
    }
}

/// Fills `dst` with the random words `noise.offset ..`.
pub fn fill_u32(noise: Noise, dst: &mut [u32]) {
    for_each_word(noise, dst.len(), |position, word| dst[position] = word);
}

/// Fills `dst` with uniform values in [0, 1): the high 24 bits of each word, times 2^-24.
pub fn fill_uniform(noise: Noise, dst: &mut [f32]) {
    for_each_word(noise, dst.len(), |position, word| dst[position] = uniform(word));
}

/// Fills `dst` with standard normal values, one from each word; see [`normal`].
pub fn fill_normal(noise: Noise, dst: &mut [f32]) {
    for_each_word(noise, dst.len(), |position, word| dst[position] = normal(word));
}

/// The uniform value in [0, 1) of a random word.
#[inline]
pub const fn uniform(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// The standard normal value of a random word: the inverse of the normal distribution function at
/// (word + 1/2) / 2^32, so symmetric and within ±6.34.
///
/// Wichura's algorithm AS 241 (PPND16, Applied Statistics 37, 1988) in plain f64 additions,
/// multiplications and divisions, with a logarithm and a square root made of the same, so that
/// every machine gives the same bits. Relative error below 1e-14 before the rounding to f32.
#[inline]
pub const fn normal(word: u32) -> f32 {
    inverse_normal((word as f64 + 0.5) * (1.0 / 4_294_967_296.0) - 0.5) as f32
}
