//! Micro-kernels: a tile of `rows × 16·vectors` products summed over `depth` in registers.
//!
//! The panel of B is packed, `[depth][TILE_N]`; A is read in place through two strides, so a tile
//! of A that is decoded row by row needs no second shuffle. In the BF16 kernel one unit of depth
//! is a pair of neighbours along K, 32 bits wide, in both operands.

/// Columns of a packed panel of B.
pub(crate) const TILE_N: usize = 32;
/// Most rows of a tile.
pub(crate) const TILE_M: usize = 14;

/// What becomes of the sums of a tile.
#[derive(Clone, Copy)]
pub(crate) struct Store {
    /// Add to what the tile of C holds: not the first block along K.
    pub accumulate: bool,
    /// Factor for the (accumulated) sums.
    pub alpha: f32,
}

/// Where a tile of A lies: element `(row, k)` is `a[row · row_stride + k · depth_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct TileA<'a, U> {
    pub data: &'a [U],
    pub row_stride: usize,
    pub depth_stride: usize,
}

/// A tile of C: element `(row, column)` is `c[row · stride + column]`.
pub(crate) struct TileC<'a> {
    pub data: &'a mut [f32],
    pub stride: usize,
}

fn check<U>(a: TileA<'_, U>, b: &[U], c: &TileC<'_>, rows: usize, columns: usize, depth: usize) {
    assert!((1..=TILE_M).contains(&rows) && (1..=TILE_N).contains(&columns));
    assert!(b.len() >= depth * TILE_N, "panel of B is too short");
    assert!(c.data.len() >= (rows - 1) * c.stride + columns, "tile of C is too short");
    let last = (rows - 1) * a.row_stride + depth.saturating_sub(1) * a.depth_stride;
    assert!(depth == 0 || last < a.data.len(), "tile of A is too short");
}

/// f32 tile without vector intrinsics; the compiler vectorises the inner loop.
pub(super) fn tile_f32_portable(
    a: TileA<'_, f32>,
    b: &[f32],
    c: TileC<'_>,
    rows: usize,
    columns: usize,
    depth: usize,
    store: Store,
) {
    check(a, b, &c, rows, columns, depth);
    for row in 0..rows {
        let mut sums = [0.0_f32; TILE_N];
        for (k, panel) in b.as_chunks::<TILE_N>().0[..depth].iter().enumerate() {
            let x = a.data[row * a.row_stride + k * a.depth_stride];
            for (sum, y) in sums.iter_mut().zip(panel) {
                *sum += x * y;
            }
        }
        let out = &mut c.data[row * c.stride..][..columns];
        for (out, sum) in out.iter_mut().zip(sums) {
            let before = if store.accumulate { *out } else { 0.0 };
            *out = (before + sum) * store.alpha;
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{tile_bf16_avx512, tile_f32_avx2, tile_f32_avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Store, TILE_N, TileA, TileC, check};

    /// Defines a safe tile function that picks the kernel instance for the number of rows.
    macro_rules! tile {
        ($(#[$meta:meta])* $name:ident, $kernel:ident, $unit:ty, $step:expr, [$($rows:literal)*]) => {
            $(#[$meta])*
            pub(in crate::gemm) fn $name(
                a: TileA<'_, $unit>,
                b: &[$unit],
                c: TileC<'_>,
                rows: usize,
                columns: usize,
                depth: usize,
                store: Store,
            ) {
                check(a, b, &c, rows, columns, depth);
                let mut row = 0;
                while row < rows {
                    let count = (rows - row).min($step);
                    // SAFETY: the caller found the instruction set at run time (`Isa`); `check`
                    // proved that the pointers stay inside the three slices.
                    unsafe {
                        let a_start = a.data.as_ptr().add(row * a.row_stride);
                        let c_start = c.data.as_mut_ptr().add(row * c.stride);
                        let strides = (a.row_stride, a.depth_stride);
                        match count {
                            $($rows => $kernel::<$rows>(
                                a_start, strides, b.as_ptr(), c_start, c.stride, columns, depth, store,
                            ),)*
                            _ => unreachable!("more rows than a tile has"),
                        }
                    }
                    row += count;
                }
            }
        };
    }

    tile!(
        /// f32 tile with AVX-512.
        tile_f32_avx512, kernel_f32_avx512, f32, 14, [1 2 3 4 5 6 7 8 9 10 11 12 13 14]
    );
    tile!(
        /// BF16 pairs with AVX-512 BF16: `c += a.0·b.0 + a.1·b.1` for each 32-bit unit.
        tile_bf16_avx512, kernel_bf16_avx512, u32, 14, [1 2 3 4 5 6 7 8 9 10 11 12 13 14]
    );
    tile!(
        /// f32 tile with AVX2 and FMA.
        tile_f32_avx2, kernel_f32_avx2, f32, 3, [1 2 3]
    );

    /// Writes a tile of sums: `c = (c if accumulate + sums) · alpha`, `columns` of each row. A
    /// macro, so that the sums never leave their registers; `c` must have
    /// `(ROWS - 1) · stride + columns` elements.
    macro_rules! store_avx512 {
        ($sums:ident, $rows:ident, $c:ident, $stride:ident, $columns:ident, $store:ident) => {
            let alpha = _mm512_set1_ps($store.alpha);
            let bits = (1_u64 << $columns) - 1;
            let masks = [bits as __mmask16, (bits >> 16) as __mmask16];
            for row in 0..$rows {
                // SAFETY: masked lanes are the columns inside the tile.
                unsafe {
                    let out = $c.add(row * $stride);
                    let (mut first, mut second) = ($sums[row][0], $sums[row][1]);
                    if $store.accumulate {
                        first = _mm512_add_ps(_mm512_maskz_loadu_ps(masks[0], out), first);
                        let next = _mm512_maskz_loadu_ps(masks[1], out.wrapping_add(16));
                        second = _mm512_add_ps(next, second);
                    }
                    _mm512_mask_storeu_ps(out, masks[0], _mm512_mul_ps(first, alpha));
                    let next = out.wrapping_add(16);
                    _mm512_mask_storeu_ps(next, masks[1], _mm512_mul_ps(second, alpha));
                }
            }
        };
    }

    /// # Safety
    /// AVX-512 F; pointers valid as [`check`] demands.
    #[target_feature(enable = "avx512f")]
    unsafe fn kernel_f32_avx512<const ROWS: usize>(
        a: *const f32,
        (row_stride, depth_stride): (usize, usize),
        b: *const f32,
        c: *mut f32,
        stride: usize,
        columns: usize,
        depth: usize,
        store: Store,
    ) {
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        for k in 0..depth {
            // SAFETY: k < depth and row < ROWS, inside the slices by the caller's promise.
            unsafe {
                let b0 = _mm512_loadu_ps(b.add(k * TILE_N));
                let b1 = _mm512_loadu_ps(b.add(k * TILE_N + 16));
                let ak = a.add(k * depth_stride);
                for row in 0..ROWS {
                    let x = _mm512_set1_ps(*ak.add(row * row_stride));
                    sums[row][0] = _mm512_fmadd_ps(x, b0, sums[row][0]);
                    sums[row][1] = _mm512_fmadd_ps(x, b1, sums[row][1]);
                }
            }
        }
        store_avx512!(sums, ROWS, c, stride, columns, store);
    }

    /// # Safety
    /// AVX-512 F and BF16; pointers valid as [`check`] demands.
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn kernel_bf16_avx512<const ROWS: usize>(
        a: *const u32,
        (row_stride, depth_stride): (usize, usize),
        b: *const u32,
        c: *mut f32,
        stride: usize,
        columns: usize,
        depth: usize,
        store: Store,
    ) {
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        for k in 0..depth {
            // SAFETY: k < depth and row < ROWS, inside the slices by the caller's promise; the
            // transmutes only rename 512 bits.
            unsafe {
                let b0: __m512bh =
                    std::mem::transmute(_mm512_loadu_si512(b.add(k * TILE_N).cast()));
                let b1: __m512bh =
                    std::mem::transmute(_mm512_loadu_si512(b.add(k * TILE_N + 16).cast()));
                let ak = a.add(k * depth_stride);
                for row in 0..ROWS {
                    let pair = _mm512_set1_epi32(*ak.add(row * row_stride) as i32);
                    let x: __m512bh = std::mem::transmute(pair);
                    sums[row][0] = _mm512_dpbf16_ps(sums[row][0], x, b0);
                    sums[row][1] = _mm512_dpbf16_ps(sums[row][1], x, b1);
                }
            }
        }
        store_avx512!(sums, ROWS, c, stride, columns, store);
    }

    /// # Safety
    /// AVX2 and FMA; pointers valid as [`check`] demands.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn kernel_f32_avx2<const ROWS: usize>(
        a: *const f32,
        (row_stride, depth_stride): (usize, usize),
        b: *const f32,
        c: *mut f32,
        stride: usize,
        columns: usize,
        depth: usize,
        store: Store,
    ) {
        let mut sums = [[_mm256_setzero_ps(); 4]; ROWS];
        for k in 0..depth {
            // SAFETY: k < depth and row < ROWS, inside the slices by the caller's promise.
            unsafe {
                let bk = b.add(k * TILE_N);
                let ak = a.add(k * depth_stride);
                for row in 0..ROWS {
                    let x = _mm256_set1_ps(*ak.add(row * row_stride));
                    for part in 0..4 {
                        let y = _mm256_loadu_ps(bk.add(part * 8));
                        sums[row][part] = _mm256_fmadd_ps(x, y, sums[row][part]);
                    }
                }
            }
        }
        let mut row_sums = [0.0_f32; TILE_N];
        for row in 0..ROWS {
            for part in 0..4 {
                // SAFETY: 4 · 8 = TILE_N elements.
                unsafe { _mm256_storeu_ps(row_sums.as_mut_ptr().add(part * 8), sums[row][part]) };
            }
            // SAFETY: `columns` elements of this row are inside C by the caller's promise.
            let out = unsafe { std::slice::from_raw_parts_mut(c.add(row * stride), columns) };
            for (out, sum) in out.iter_mut().zip(row_sums) {
                let before = if store.accumulate { *out } else { 0.0 };
                *out = (before + sum) * store.alpha;
            }
        }
    }
}
