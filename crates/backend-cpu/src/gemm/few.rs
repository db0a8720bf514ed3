//! Products of a few rows with a matrix whose columns are contiguous: generating one token.
//!
//! Packing B would cost more than the product, which reads B once: so each column is decoded into
//! registers and multiplied there. One-byte codes become BF16 numbers by byte permutations and meet
//! the left operand, which is kept in the order that those leave, in BF16 dot products.

use super::GemmShape;
use super::pack::Operand;
use crate::math::dot;
use crate::parallel::{Scratch, for_each_task};
#[cfg(target_arch = "x86_64")]
use crate::simd::Isa;
use crate::tensor::SharedOutput;

/// Most rows of A for which this is faster.
const ROWS: usize = 4;
/// Columns of C in one task.
const COLUMNS: usize = 64;

/// Whether [`few_rows`] should compute a product.
pub(super) fn suits(m: usize, b: &Operand<'_>) -> bool {
    m <= ROWS && b.matrix.row_stride == 1
}

/// `C = alpha · A B` for one item whose C starts at element `c`; `pairs` if both operands are exact
/// in BF16.
pub(super) fn few_rows(
    shape: GemmShape,
    alpha: f32,
    a: Operand<'_>,
    b: Operand<'_>,
    c: usize,
    out: SharedOutput<'_>,
    parallel: bool,
    pairs: bool,
) {
    let GemmShape { m, n, k } = shape;
    let left = Left::new(m, k, a, b, pairs);
    let task = |task: usize| {
        let columns = task * COLUMNS..n.min((task + 1) * COLUMNS);
        let mut decoded = Scratch::<f32>::new(left.room());
        let mut results = [[0.0_f32; COLUMNS]; ROWS];
        for (at, column) in columns.clone().enumerate() {
            let sums = left.times(b, column, &mut decoded);
            for (results, sum) in results.iter_mut().zip(sums) {
                results[at] = alpha * sum;
            }
        }
        for (row, results) in results[..m].iter().enumerate() {
            // SAFETY: this task alone writes these columns.
            unsafe { out.encode(c + row * n + columns.start, &results[..columns.len()]) };
        }
    };
    let count = n.div_ceil(COLUMNS);
    if parallel { for_each_task(count, task) } else { (0..count).for_each(task) }
}

/// The rows of A in the form that a column of B is multiplied in.
enum Left {
    /// f32 numbers; columns of any format are decoded first.
    Decoded { rows: Scratch<f32>, m: usize, k: usize },
    /// f32 numbers; columns are f32 or two-byte codes that registers are loaded from.
    #[cfg(target_arch = "x86_64")]
    Direct { rows: Scratch<f32>, m: usize, k: usize },
    /// BF16 numbers in the order of [`x86::interleaved`], `k` rounded up to 64 with zeros.
    #[cfg(target_arch = "x86_64")]
    Pairs { rows: Scratch<u16>, m: usize, k: usize },
}

impl Left {
    fn new(m: usize, k: usize, a: Operand<'_>, b: Operand<'_>, pairs: bool) -> Self {
        #[cfg(target_arch = "x86_64")]
        if pairs && b.matrix.format.bytes() == 1 && k > 0 {
            let padded = k.next_multiple_of(x86::BLOCK);
            let mut numbers = Scratch::<u16>::new(padded);
            let mut rows = Scratch::<u16>::new(m * padded);
            for (row, out) in rows.chunks_exact_mut(padded).enumerate() {
                a.along_row::<u32>(row, 0, &mut numbers[..k]);
                numbers[k..].fill(0);
                for (at, out) in out.iter_mut().enumerate() {
                    *out = numbers[x86::interleaved(at)];
                }
            }
            return Self::Pairs { rows, m, k };
        }
        let mut rows = Scratch::<f32>::new(m * k);
        if k > 0 {
            for (row, out) in rows.chunks_exact_mut(k).enumerate() {
                a.along_row::<f32>(row, 0, out);
            }
        }
        #[cfg(target_arch = "x86_64")]
        if Isa::current() >= Isa::Avx512 && x86::loads(b.matrix.format) {
            return Self::Direct { rows, m, k };
        }
        let _ = pairs;
        Self::Decoded { rows, m, k }
    }

    /// Elements of working memory that [`Left::times`] wants.
    fn room(&self) -> usize {
        match self {
            Self::Decoded { k, .. } => *k,
            #[cfg(target_arch = "x86_64")]
            _ => 0,
        }
    }

    /// Each row times a column of B; zero for rows that there are not.
    fn times(&self, b: Operand<'_>, column: usize, decoded: &mut [f32]) -> [f32; ROWS] {
        let mut sums = [0.0; ROWS];
        match self {
            Self::Decoded { rows, m, k } => {
                b.along_column::<f32>(0, column, decoded);
                for (row, sum) in sums[..*m].iter_mut().enumerate() {
                    *sum = dot(&rows[row * k..][..*k], decoded);
                }
            }
            #[cfg(target_arch = "x86_64")]
            Self::Direct { rows, m, k } => {
                let codes = b.column_codes(column, *k);
                x86::direct(b.matrix.format, rows, codes, *m, *k, &mut sums);
            }
            #[cfg(target_arch = "x86_64")]
            Self::Pairs { rows, m, k } => {
                x86::pairs(b.decoder, rows, b.column_codes(column, *k), *m, &mut sums);
            }
        }
        sums
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use onesigma_format::Format;

    use super::super::units::{Decoder, load_table, look_up};
    use super::ROWS;
    use crate::simd::Isa;

    /// Codes that are decoded at a time.
    pub(super) const BLOCK: usize = 64;

    /// Which element of its row stands at `at`: unpacking bytes interleaves groups of 8 of every
    /// 16 neighbours, the first groups in one register and the second in the next.
    pub(super) fn interleaved(at: usize) -> usize {
        let (block, at) = (at / BLOCK, at % BLOCK);
        let (register, at) = (at / 32, at % 32);
        block * BLOCK + at / 8 * 16 + register * 8 + at % 8
    }

    /// Whether registers of f32 can be loaded from codes of this format.
    pub(super) fn loads(format: Format) -> bool {
        [Format::F32, Format::F16, Format::BF16].contains(&format)
    }

    /// Calls the version of a function for `m` rows.
    macro_rules! for_rows {
        ($m:ident, $function:ident($($arg:expr),*)) => {
            match $m {
                1 => $function::<1>($($arg),*),
                2 => $function::<2>($($arg),*),
                3 => $function::<3>($($arg),*),
                _ => $function::<4>($($arg),*),
            }
        };
    }

    /// Rows of f32 times a column of codes that [`loads`].
    pub(super) fn direct(
        format: Format,
        rows: &[f32],
        codes: &[u8],
        m: usize,
        k: usize,
        sums: &mut [f32; ROWS],
    ) {
        assert!(
            (1..=ROWS).contains(&m) && rows.len() >= m * k && codes.len() >= k * format.bytes()
        );
        assert!(Isa::current() >= Isa::Avx512);
        // SAFETY: the machine has AVX-512, and all `m · k` numbers and `k` codes exist.
        unsafe {
            match format {
                Format::F32 => for_rows!(m, direct_f32(rows, codes, k, sums)),
                Format::F16 => for_rows!(m, direct_f16(rows, codes, k, sums)),
                _ => for_rows!(m, direct_bf16(rows, codes, k, sums)),
            }
        }
    }

    /// A function that multiplies rows by a column whose codes `$load(pointer, mask)` reads 16 of.
    macro_rules! direct {
        ($name:ident, $bytes:literal, $load:ident) => {
            /// # Safety
            /// AVX-512; `M · k` numbers and `k` codes exist.
            #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
            unsafe fn $name<const M: usize>(
                rows: &[f32],
                codes: &[u8],
                k: usize,
                sums: &mut [f32; ROWS],
            ) {
                // Four sums for each row hide the latency of the additions.
                let mut total = [[_mm512_setzero_ps(); 4]; M];
                let mut at = 0;
                // SAFETY: for all reads, whole vectors and masked lanes are elements below k.
                unsafe {
                    while at + 64 <= k {
                        for part in 0..4 {
                            let first = at + 16 * part;
                            let x = $load(codes.as_ptr().add(first * $bytes), u16::MAX);
                            for row in 0..M {
                                let y = _mm512_loadu_ps(rows.as_ptr().add(row * k + first));
                                total[row][part] = _mm512_fmadd_ps(x, y, total[row][part]);
                            }
                        }
                        at += 64;
                    }
                    while at < k {
                        let mask = ((1_u32 << (k - at).min(16)) - 1) as __mmask16;
                        let x = $load(codes.as_ptr().add(at * $bytes), mask);
                        for row in 0..M {
                            let y = _mm512_maskz_loadu_ps(mask, rows.as_ptr().add(row * k + at));
                            total[row][0] = _mm512_fmadd_ps(x, y, total[row][0]);
                        }
                        at += 16;
                    }
                }
                for (sum, [a, b, c, d]) in sums.iter_mut().zip(total) {
                    let pairs = [_mm512_add_ps(a, b), _mm512_add_ps(c, d)];
                    *sum = _mm512_reduce_add_ps(_mm512_add_ps(pairs[0], pairs[1]));
                }
            }
        };
    }

    direct!(direct_f32, 4, load_f32);
    direct!(direct_f16, 2, load_f16);
    direct!(direct_bf16, 2, load_bf16);

    /// # Safety
    /// AVX-512; masked codes exist.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load_f32(codes: *const u8, mask: __mmask16) -> __m512 {
        // SAFETY: as this function.
        unsafe { _mm512_maskz_loadu_ps(mask, codes.cast()) }
    }

    /// # Safety
    /// As [`load_f32`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load_f16(codes: *const u8, mask: __mmask16) -> __m512 {
        // SAFETY: as this function.
        _mm512_cvtph_ps(unsafe { _mm256_maskz_loadu_epi16(mask, codes.cast()) })
    }

    /// # Safety
    /// As [`load_f32`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load_bf16(codes: *const u8, mask: __mmask16) -> __m512 {
        // SAFETY: as this function.
        let codes = unsafe { _mm256_maskz_loadu_epi16(mask, codes.cast()) };
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(codes)))
    }

    /// Rows of [`interleaved`] BF16 numbers times a column of one-byte codes.
    pub(super) fn pairs(
        decoder: &Decoder,
        rows: &[u16],
        codes: &[u8],
        m: usize,
        sums: &mut [f32; ROWS],
    ) {
        assert!((1..=ROWS).contains(&m) && rows.len() >= m * codes.len().next_multiple_of(BLOCK));
        assert!(Isa::current() == Isa::Avx512Bf16);
        // SAFETY: the machine has AVX-512 with BF16 and VBMI, and the numbers exist.
        unsafe {
            for_rows!(m, pairs_avx512(decoder.planes(), rows, codes, sums));
        }
    }

    /// # Safety
    /// AVX-512 with BF16 and VBMI; `M` rows as long as the codes, rounded up to [`BLOCK`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512bf16")]
    unsafe fn pairs_avx512<const M: usize>(
        planes: &[[u8; 256]; 2],
        rows: &[u16],
        codes: &[u8],
        sums: &mut [f32; ROWS],
    ) {
        load_table!(table, planes);
        let stride = codes.len().next_multiple_of(BLOCK);
        let mut total = [[_mm512_setzero_ps(); 2]; M];
        for at in (0..codes.len()).step_by(BLOCK) {
            let live = (codes.len() - at).min(BLOCK);
            let mask = if live == BLOCK { u64::MAX } else { (1 << live) - 1 };
            // SAFETY: masked lanes lie inside the codes; rows are padded to whole blocks.
            unsafe {
                let index = _mm512_maskz_loadu_epi8(mask, codes.as_ptr().add(at).cast());
                look_up!(low, high, table, index);
                let halves = [_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)];
                for row in 0..M {
                    let left = rows.as_ptr().add(row * stride + at);
                    for (part, half) in halves.into_iter().enumerate() {
                        let x: __m512bh =
                            std::mem::transmute(_mm512_loadu_si512(left.add(32 * part).cast()));
                        let y: __m512bh = std::mem::transmute(half);
                        total[row][part] = _mm512_dpbf16_ps(total[row][part], x, y);
                    }
                }
            }
        }
        for (sum, [a, b]) in sums.iter_mut().zip(total) {
            *sum = _mm512_reduce_add_ps(_mm512_add_ps(a, b));
        }
    }
}
