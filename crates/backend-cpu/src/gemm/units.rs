//! The two forms that operands take inside the GEMM: f32 numbers, or pairs of BF16 numbers.
//!
//! Every value of FP8 (and of narrower formats) is exact in BF16, and the BF16 dot product forms
//! exact products and adds them in f32. So FP8 operands run at twice the f32 rate without leaving
//! the numeric contract.

use std::sync::{PoisonError, RwLock};

use onesigma_format::{Format, decode};

use super::micro::{self, Store, TileA, TileC};
use crate::codec;
use crate::parallel::Plain;
use crate::simd::Isa;

/// A unit of depth: what one step of a micro-kernel multiplies.
pub(super) trait Unit: Plain + Default {
    /// One number of the unit.
    type Half: Plain + Default;
    /// Numbers along K in a unit.
    const PER: usize;
    /// Units of depth in a block, which a panel of B has in a cache: all of a 32 KiB L1 for f32,
    /// where fewer passes over C pay more; half of it for BF16, where a pass has twice the depth.
    const DEPTH: usize;
    /// Builds a unit from neighbours along K (`high` is ignored where `PER` is 1).
    fn join(low: Self::Half, high: Self::Half) -> Self;
    /// The same memory as single numbers.
    fn halves(units: &mut [Self]) -> &mut [Self::Half];
    /// Decodes neighbouring codes.
    fn decode(decoder: &Decoder, codes: &[u8], out: &mut [Self::Half]);
    /// Packs rows of codes into units at once, if there is a faster way than row by row.
    fn pack_rows(_: &Decoder, _: CodeRows<'_>, _: PackedRows<'_, Self>) -> bool {
        false
    }
    /// The best micro-kernel of this machine.
    fn kernel() -> Kernel<Self>;
}

/// `depth` rows of `width` codes; row `k` starts at `codes[first + k · stride]`.
#[derive(Clone, Copy)]
pub(super) struct CodeRows<'a> {
    pub codes: &'a [u8],
    pub first: usize,
    pub stride: usize,
    pub width: usize,
    pub depth: usize,
}

/// Where units go: column `c` of unit `u` at `(c / 32) · group_stride + u · unit_stride + c % 32`.
pub(super) struct PackedRows<'a, U> {
    pub out: &'a mut [U],
    pub group_stride: usize,
    pub unit_stride: usize,
}

/// A micro-kernel: `(a, b, c, rows, columns, depth, store)`.
pub(crate) type Kernel<U> = fn(TileA<'_, U>, &[U], TileC<'_>, usize, usize, usize, Store);

impl Unit for f32 {
    type Half = Self;
    const PER: usize = 1;
    const DEPTH: usize = 256;

    fn join(low: Self, _: Self) -> Self {
        low
    }

    fn halves(units: &mut [Self]) -> &mut [Self] {
        units
    }

    fn decode(decoder: &Decoder, codes: &[u8], out: &mut [Self]) {
        codec::decode(decoder.format, codes, out);
    }

    fn kernel() -> Kernel<Self> {
        #[cfg(target_arch = "x86_64")]
        match Isa::current() {
            Isa::Avx512 | Isa::Avx512Bf16 => return micro::tile_f32_avx512,
            Isa::Avx2 => return micro::tile_f32_avx2,
            Isa::Portable => {}
        }
        micro::tile_f32_portable
    }
}

impl Unit for u32 {
    type Half = u16;
    const PER: usize = 2;
    const DEPTH: usize = 128;

    fn join(low: u16, high: u16) -> Self {
        Self::from(low) | Self::from(high) << 16
    }

    fn halves(units: &mut [Self]) -> &mut [u16] {
        // SAFETY: u16 has half the size of u32, a smaller alignment, and no invalid values.
        unsafe { std::slice::from_raw_parts_mut(units.as_mut_ptr().cast(), units.len() * 2) }
    }

    fn decode(decoder: &Decoder, codes: &[u8], out: &mut [u16]) {
        if decoder.format.bytes() == 2 {
            for (out, code) in out.iter_mut().zip(codes.as_chunks::<2>().0) {
                *out = u16::from_le_bytes(*code);
            }
            return;
        }
        #[cfg(target_arch = "x86_64")]
        if Isa::current() >= Isa::Avx512 {
            // SAFETY: `Isa::current` found AVX-512 with VBMI.
            unsafe { lookup_avx512(&decoder.planes, codes, out) };
            return;
        }
        for (out, code) in out.iter_mut().zip(codes) {
            *out = decoder.bf16[usize::from(*code)];
        }
    }

    fn pack_rows(decoder: &Decoder, rows: CodeRows<'_>, packed: PackedRows<'_, Self>) -> bool {
        #[cfg(target_arch = "x86_64")]
        if decoder.format.bytes() == 1 && rows.depth > 0 && rows.width > 0 {
            let last_code = rows.first + (rows.depth - 1) * rows.stride + rows.width;
            let last_unit = (rows.width - 1) / 32 * packed.group_stride
                + (rows.depth - 1) / 2 * packed.unit_stride
                + (rows.width - 1) % 32;
            assert!(last_code <= rows.codes.len() && last_unit < packed.out.len());
            // SAFETY: BF16 units are chosen only with AVX-512 BF16, which `Isa` finds only together
            // with VBMI; the assertion bounds every access.
            unsafe { pack_rows_avx512(&decoder.planes, rows, packed) };
            return true;
        }
        false
    }

    fn kernel() -> Kernel<Self> {
        #[cfg(target_arch = "x86_64")]
        if Isa::current() == Isa::Avx512Bf16 {
            return micro::tile_bf16_avx512;
        }
        unreachable!("BF16 units are chosen only where the BF16 dot product exists")
    }
}

/// What is needed to decode one operand.
pub(super) struct Decoder {
    format: Format,
    bf16: [u16; 256],
    /// Low and high bytes of `bf16`, for byte permutations.
    planes: [[u8; 256]; 2],
    /// Whether every code of a one-byte format is exact, and safe from flushing, as BF16.
    fits: bool,
}

/// Magnitudes in this range have products and short sums that are normal f32 numbers, which the
/// BF16 dot product needs: it flushes subnormals to zero.
const SAFE: std::ops::Range<f32> = 1e-18..1e18;

impl Decoder {
    /// The decoder of a format, made when it is first asked for: making one costs as much as a
    /// small product.
    pub(super) fn of(format: Format) -> &'static Self {
        static KNOWN: RwLock<Vec<&'static Decoder>> = RwLock::new(Vec::new());
        let find = |known: &[&'static Self]| known.iter().find(|d| d.format == format).copied();
        if let Some(known) = find(&KNOWN.read().unwrap_or_else(PoisonError::into_inner)) {
            return known;
        }
        let mut known = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
        find(&known).unwrap_or_else(|| {
            let new: &'static Self = Box::leak(Box::new(Self::new(format)));
            known.push(new);
            new
        })
    }

    fn new(format: Format) -> Self {
        let (mut bf16, mut planes) = ([0; 256], [[0; 256]; 2]);
        let mut fits = format.bytes() == 1;
        if format.bytes() == 1 {
            for code in 0..256 {
                let exact = decode(code as u32, format);
                let value: u16 = (exact.to_bits() >> 16) as u16;
                bf16[code] = value;
                [planes[0][code], planes[1][code]] = value.to_le_bytes();
                fits &= exact.to_bits() & 0xffff == 0
                    && (exact == 0.0 || !exact.is_finite() || SAFE.contains(&exact.abs()));
            }
        }
        Self { format, bf16, planes, fits }
    }

    /// Low and high bytes of each code's BF16 number; only meaningful for one-byte formats.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn planes(&self) -> &[[u8; 256]; 2] {
        &self.planes
    }

    /// Whether all of this operand is exact, and safe from flushing, as BF16.
    pub(super) fn fits_bf16(&self, bytes: &[u8]) -> bool {
        self.fits || self.format == Format::BF16 && bf16_is_safe(bytes)
    }
}

crate::simd::simd_fn! {
    /// Whether no element of BF16 `bytes` is nonzero and below [`SAFE`].
    fn bf16_is_safe[FMA](bytes: &[u8]) -> bool {
        let limit = (SAFE.start.to_bits() >> 16) as u16 + 1;
        bytes.as_chunks::<256>().0.iter().all(|block| {
            let mut unsafe_count = 0_u16;
            for code in block.as_chunks::<2>().0 {
                let magnitude = u16::from_le_bytes(*code) & 0x7fff;
                unsafe_count += u16::from(magnitude.wrapping_sub(1) < limit - 1);
            }
            unsafe_count == 0
        }) && bytes.as_chunks::<256>().1.as_chunks::<2>().0.iter().all(|code| {
            let magnitude = u16::from_le_bytes(*code) & 0x7fff;
            magnitude == 0 || magnitude >= limit
        })
    }
}

/// Loads the planes of a table into 8 registers.
#[cfg(target_arch = "x86_64")]
macro_rules! load_table {
    ($table:ident, $planes:ident) => {
        // SAFETY: each load reads 64 of 256 bytes.
        let $table = unsafe {
            let (low, high) = ($planes[0].as_ptr(), $planes[1].as_ptr());
            [
                _mm512_loadu_si512(low.cast()),
                _mm512_loadu_si512(low.add(64).cast()),
                _mm512_loadu_si512(low.add(128).cast()),
                _mm512_loadu_si512(low.add(192).cast()),
                _mm512_loadu_si512(high.cast()),
                _mm512_loadu_si512(high.add(64).cast()),
                _mm512_loadu_si512(high.add(128).cast()),
                _mm512_loadu_si512(high.add(192).cast()),
            ]
        };
    };
}

/// Low and high bytes of the table's values for 64 codes.
#[cfg(target_arch = "x86_64")]
macro_rules! look_up {
    ($low:ident, $high:ident, $table:ident, $codes:ident) => {
        let upper = _mm512_movepi8_mask($codes);
        let $low = _mm512_mask_blend_epi8(
            upper,
            _mm512_permutex2var_epi8($table[0], $codes, $table[1]),
            _mm512_permutex2var_epi8($table[2], $codes, $table[3]),
        );
        let $high = _mm512_mask_blend_epi8(
            upper,
            _mm512_permutex2var_epi8($table[4], $codes, $table[5]),
            _mm512_permutex2var_epi8($table[6], $codes, $table[7]),
        );
    };
}

#[cfg(target_arch = "x86_64")]
pub(super) use {load_table, look_up};

/// Pairs of rows looked up and interleaved, 64 columns at a time.
///
/// # Safety
/// AVX-512 F, BW and VBMI; every code and unit inside its slice, see [`Unit::pack_rows`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
unsafe fn pack_rows_avx512(
    planes: &[[u8; 256]; 2],
    rows: CodeRows<'_>,
    packed: PackedRows<'_, u32>,
) {
    use std::arch::x86_64::*;
    load_table!(table, planes);
    for unit in 0..rows.depth.div_ceil(2) {
        for column in (0..rows.width).step_by(64) {
            let live = (rows.width - column).min(64);
            let mask = if live == 64 { u64::MAX } else { (1 << live) - 1 };
            // SAFETY: masked lanes lie inside the codes and the units, as the caller checked.
            unsafe {
                let at = rows.codes.as_ptr().add(rows.first + 2 * unit * rows.stride + column);
                let codes = _mm512_maskz_loadu_epi8(mask, at.cast());
                look_up!(low0, high0, table, codes);
                let (low1, high1) = if 2 * unit + 1 < rows.depth {
                    let codes = _mm512_maskz_loadu_epi8(mask, at.add(rows.stride).cast());
                    look_up!(low, high, table, codes);
                    (low, high)
                } else {
                    (_mm512_setzero_si512(), _mm512_setzero_si512())
                };
                let (first0, first1) =
                    (_mm512_unpacklo_epi8(low0, high0), _mm512_unpacklo_epi8(low1, high1));
                let (last0, last1) =
                    (_mm512_unpackhi_epi8(low0, high0), _mm512_unpackhi_epi8(low1, high1));
                // Lane L of part p holds columns 16 L + 4 p .. + 4.
                let part0 = _mm512_unpacklo_epi16(first0, first1);
                let part1 = _mm512_unpackhi_epi16(first0, first1);
                let part2 = _mm512_unpacklo_epi16(last0, last1);
                let part3 = _mm512_unpackhi_epi16(last0, last1);
                let low01 = _mm512_shuffle_i32x4::<0x44>(part0, part1);
                let low23 = _mm512_shuffle_i32x4::<0x44>(part2, part3);
                let high01 = _mm512_shuffle_i32x4::<0xee>(part0, part1);
                let high23 = _mm512_shuffle_i32x4::<0xee>(part2, part3);
                let columns = [
                    _mm512_shuffle_i32x4::<0x88>(low01, low23),
                    _mm512_shuffle_i32x4::<0xdd>(low01, low23),
                    _mm512_shuffle_i32x4::<0x88>(high01, high23),
                    _mm512_shuffle_i32x4::<0xdd>(high01, high23),
                ];
                let to = packed.out.as_mut_ptr().add(unit * packed.unit_stride);
                for quarter in 0..4 {
                    let live = (mask >> (16 * quarter)) as __mmask16;
                    if live == 0 {
                        break;
                    }
                    let group = (column + 16 * quarter) / 32;
                    let to = to.add(group * packed.group_stride + 16 * (quarter % 2));
                    _mm512_mask_storeu_epi32(to.cast(), live, columns[quarter]);
                }
            }
        }
    }
}

/// `out[i] = table[codes[i]]`, 64 codes at a time; `planes` are the table's low and high bytes.
///
/// # Safety
/// AVX-512 F, BW and VBMI.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
unsafe fn lookup_avx512(planes: &[[u8; 256]; 2], codes: &[u8], out: &mut [u16]) {
    use std::arch::x86_64::*;
    load_table!(table, planes);
    let count = codes.len().min(out.len());
    let mut at = 0;
    while at < count {
        let live = (count - at).min(64);
        let mask = if live == 64 { u64::MAX } else { (1 << live) - 1 };
        // SAFETY: masked lanes lie inside `codes` and `out`.
        unsafe {
            let index = _mm512_maskz_loadu_epi8(mask, codes.as_ptr().add(at).cast());
            look_up!(low, high, table, index);
            let first = _mm512_or_si512(
                _mm512_cvtepu8_epi16(_mm512_castsi512_si256(low)),
                _mm512_slli_epi16::<8>(_mm512_cvtepu8_epi16(_mm512_castsi512_si256(high))),
            );
            let low = _mm512_extracti64x4_epi64::<1>(low);
            let high = _mm512_extracti64x4_epi64::<1>(high);
            let second = _mm512_or_si512(
                _mm512_cvtepu8_epi16(low),
                _mm512_slli_epi16::<8>(_mm512_cvtepu8_epi16(high)),
            );
            let to = out.as_mut_ptr().add(at);
            _mm512_mask_storeu_epi16(to.cast(), mask as u32, first);
            if live > 32 {
                _mm512_mask_storeu_epi16(to.add(32).cast(), (mask >> 32) as u32, second);
            }
        }
        at += live;
    }
}
