//! Matrix products of operands in any format, accumulated in f32.
//!
//! ```text
//! C[b, m, n] = alpha · Σ_k A[b, m, k] · B[b, k, n]
//! ```
//!
//! Operands are decoded block by block while they are packed, so a one-byte tensor is read once as
//! one byte; results are rounded into the output's format while a block of rows is in the cache.
//! K is never split across threads and is summed in an order that depends on sizes only.

mod few;
mod micro;
mod pack;
mod units;

use std::ops::Range;

use onesigma_format::Format;

use crate::parallel::{Scratch, Shared, for_each_task};
use crate::simd::Isa;
use crate::tensor::SharedOutput;
use crate::{Error, Input, Output};
pub(crate) use micro::{Store, TILE_M, TILE_N, TileA, TileC};
use pack::{BlockA, Operand, pack_b, packed_len, panel_start};
pub(crate) use units::Kernel;
use units::{Decoder, Unit};

/// The f32 micro-kernel of this machine, for kernels that hold their operands in f32.
pub(crate) fn f32_kernel() -> Kernel<f32> {
    <f32 as Unit>::kernel()
}

/// A matrix of codes with strides, in elements: `(row, column)` of a batch item lies at
/// `origin + row · row_stride + column · column_stride`.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// The codes of the whole tensor.
    pub bytes: &'a [u8],
    /// What they mean.
    pub format: Format,
    /// Elements from one row to the next.
    pub row_stride: usize,
    /// Elements from one column to the next.
    pub column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A contiguous matrix whose rows have `columns` elements.
    pub fn new(input: Input<'a>, columns: usize) -> Self {
        Self { bytes: input.bytes, format: input.format, row_stride: columns, column_stride: 1 }
    }

    /// The same memory read as the transposed matrix.
    pub fn transposed(self) -> Self {
        Self { row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }
}

/// Sizes of a matrix product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GemmShape {
    /// Rows of A and C.
    pub m: usize,
    /// Columns of B and C.
    pub n: usize,
    /// Columns of A, rows of B.
    pub k: usize,
}

/// First elements of A, B and C of one item of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct GemmItem {
    /// First element of A.
    pub a: usize,
    /// First element of B.
    pub b: usize,
    /// First element of C; items do not overlap.
    pub c: usize,
}

/// Products up to this many multiply-adds of a batch are one task each.
const SMALL_ITEM: usize = 1 << 24;
/// A product of fewer multiply-adds is done before another thread would have taken part.
const SERIAL: usize = 1 << 16;
/// Columns of C in one task.
const BLOCK_COLUMNS: usize = 1024;
/// Most units that a packed B takes at a time (4 bytes each).
const PACKED_UNITS: usize = 4 << 20;

/// `C = alpha · A B` for every item of a batch; C has contiguous rows of `n` elements.
///
/// Transposed operands are [`Matrix::transposed`] views; nothing is copied for them. With K = 0
/// the result is zero.
///
/// # Errors
/// [`Error::Shape`] if an item reaches beyond A, B or C, or two items share elements of C;
/// [`Error::Format`] for a rounding that there is not.
pub fn gemm(
    shape: GemmShape,
    alpha: f32,
    a: Matrix<'_>,
    b: Matrix<'_>,
    batch: &[GemmItem],
    out: Output<'_>,
) -> Result<(), Error> {
    gemm_then(shape, alpha, a, b, batch, out, None)
}

/// What follows a product row by row: called for disjoint ranges of rows of C that together are
/// all of them, each after its rows are stored, by the thread that stored them where that is one.
pub(crate) type After<'a> = &'a (dyn Fn(Range<usize>) + Sync);

/// [`gemm`], with what follows while the rows are in the cache. Rows count through the items of a
/// batch.
pub(crate) fn gemm_then(
    shape: GemmShape,
    alpha: f32,
    a: Matrix<'_>,
    b: Matrix<'_>,
    batch: &[GemmItem],
    mut out: Output<'_>,
    after: Option<After<'_>>,
) -> Result<(), Error> {
    let GemmShape { m, n, k } = shape;
    out.expect_rule()?;
    for item in batch {
        check(a, item.a, m, k, "A")?;
        check(b, item.b, k, n, "B")?;
        let c = Matrix { bytes: &*out.bytes, format: out.format, row_stride: n, column_stride: 1 };
        check(c, item.c, m, n, "C")?;
    }
    let overlap = |pair: &[GemmItem]| pair[0].c + m * n > pair[1].c;
    if batch.windows(2).any(overlap) {
        return Err(Error::Shape {
            kernel: "gemm",
            reason: "items of the batch share elements of C; give them in ascending order".into(),
        });
    }
    if m == 0 || n == 0 {
        return Ok(());
    }
    let decoders = [Decoder::of(a.format), Decoder::of(b.format)];
    let out = out.share();
    let pairs = Isa::current() == Isa::Avx512Bf16
        && decoders[0].fits_bf16(a.bytes)
        && decoders[1].fits_bf16(b.bytes);
    let run = |index: usize, tasks: bool| {
        let item = &batch[index];
        let a = Operand { matrix: a, origin: item.a, decoder: decoders[0] };
        let b = Operand { matrix: b, origin: item.b, decoder: decoders[1] };
        let shifted = |rows: Range<usize>| {
            if let Some(after) = after {
                after(index * m + rows.start..index * m + rows.end);
            }
        };
        let then = after.map(|_| &shifted as After<'_>);
        let done = if few::suits(m, &b) {
            few::few_rows(shape, alpha, a, b, item.c, out, tasks, pairs);
            false
        } else if pairs {
            gemm_item::<u32>(shape, alpha, a, b, item.c, out, tasks, then)
        } else {
            gemm_item::<f32>(shape, alpha, a, b, item.c, out, tasks, then)
        };
        if let Some(then) = then.filter(|_| !done) {
            let block = block_rows(m);
            let rows = |i: usize| i * block..m.min((i + 1) * block);
            self::tasks(tasks, m.div_ceil(block), |i| then(rows(i)));
        }
    };
    if batch.len() > 1 && m * n * k <= SMALL_ITEM {
        for_each_task(batch.len(), |i| run(i, false));
    } else {
        (0..batch.len()).for_each(|i| run(i, m * n * k > SERIAL));
    }
    Ok(())
}

/// Rows of C in one task.
fn block_rows(m: usize) -> usize {
    if m >= 512 { 64 } else { 32 }
}

fn check(
    x: Matrix<'_>,
    origin: usize,
    rows: usize,
    columns: usize,
    name: &str,
) -> Result<(), Error> {
    if rows == 0 || columns == 0 {
        return Ok(());
    }
    let last = origin + (rows - 1) * x.row_stride + (columns - 1) * x.column_stride;
    let len = x.bytes.len() / x.format.bytes();
    if last < len {
        return Ok(());
    }
    Err(Error::Shape {
        kernel: "gemm",
        reason: format!(
            "{name} of {rows}×{columns} with strides {}, {} from element {origin} reaches element \
             {last}, but the tensor has {len}",
            x.row_stride, x.column_stride
        ),
    })
}

/// Calls `task` for each index, on the pool or in order on this thread.
fn tasks(parallel: bool, count: usize, task: impl Fn(usize) + Sync) {
    if parallel { for_each_task(count, task) } else { (0..count).for_each(task) }
}

/// One item. A task that has stored whole rows calls `then` with them; false if no task could.
fn gemm_item<U: Unit>(
    shape: GemmShape,
    alpha: f32,
    a: Operand<'_>,
    b: Operand<'_>,
    c: usize,
    out: SharedOutput<'_>,
    parallel: bool,
    then: Option<After<'_>>,
) -> bool {
    let GemmShape { m, n, k } = shape;
    let units = k.div_ceil(U::PER);
    let widest = (PACKED_UNITS / units.max(1) / TILE_N).max(1) * TILE_N;
    let block_rows = block_rows(m);
    let block_columns = if m < 64 { 4 * TILE_N } else { BLOCK_COLUMNS };
    let whole = n <= widest.min(block_columns);
    for first in (0..n).step_by(widest) {
        let columns = first..n.min(first + widest);
        let mut packed = Scratch::<U>::new(packed_len::<U>(k, columns.len()));
        pack_all(b, k, columns.clone(), &mut packed, parallel);
        let row_blocks = m.div_ceil(block_rows);
        let column_blocks = columns.len().div_ceil(block_columns);
        tasks(parallel, row_blocks * column_blocks, |task| {
            let row = task / column_blocks * block_rows;
            let column = task % column_blocks * block_columns;
            let block = Block {
                rows: row..m.min(row + block_rows),
                columns: column..columns.len().min(column + block_columns),
                panels: columns.len().div_ceil(TILE_N),
                packed: &packed,
            };
            let at = c + block.rows.start * n + first + block.columns.start;
            block.store(a, k, alpha, at, n, out);
            if let Some(then) = then.filter(|_| whole) {
                then(block.rows);
            }
        });
    }
    whole
}

/// Packs `columns` of B for all of K; a task packs some panels of one block of depth.
fn pack_all<U: Unit>(
    b: Operand<'_>,
    k: usize,
    columns: Range<usize>,
    packed: &mut [U],
    parallel: bool,
) {
    const PANELS: usize = 8;
    let panels = columns.len().div_ceil(TILE_N);
    let shared = Shared::new(packed);
    let block = U::DEPTH * U::PER;
    let groups = panels.div_ceil(PANELS);
    tasks(parallel, k.div_ceil(block) * groups, |task| {
        let (index, group) = (task / groups, task % groups);
        let depth = index * block..k.min((index + 1) * block);
        let units = depth.len().div_ceil(U::PER);
        let first = group * PANELS;
        let count = (panels - first).min(PANELS);
        let part = columns.start + first * TILE_N
            ..columns.end.min(columns.start + (first + count) * TILE_N);
        let start = panel_start::<U>(index, first, panels, units);
        // SAFETY: every (block of depth, group of panels) has its own part of the packing.
        let out = unsafe { shared.slice(start, count * units * TILE_N) };
        pack_b(b, depth, part, out);
    });
}

/// A block of C that one task computes; columns count from the packed part's first.
struct Block<'a, U> {
    rows: Range<usize>,
    columns: Range<usize>,
    panels: usize,
    packed: &'a [U],
}

impl<U: Unit> Block<'_, U> {
    /// Computes this block and rounds it into C, whose rows have `n` elements; the block's first is
    /// element `at`.
    fn store(
        &self,
        a: Operand<'_>,
        k: usize,
        alpha: f32,
        at: usize,
        n: usize,
        out: SharedOutput<'_>,
    ) {
        let width = self.columns.len();
        let whole_rows = width == n;
        // Sums that are added to several times stay in a cache better in scratch memory.
        let once = k <= U::DEPTH * U::PER;
        if whole_rows && once {
            // SAFETY: this task alone writes these rows, and its columns are whole rows.
            let direct = unsafe { out.as_f32(at, self.rows.len() * n) };
            if let Some(direct) = direct {
                return self.multiply(a, k, alpha, direct, n);
            }
        }
        // Rows a multiple of 2 KiB apart would share a few sets of the L1 cache.
        let stride = if width.is_multiple_of(512) { width + 16 } else { width };
        let mut sums = Scratch::<f32>::new(self.rows.len() * stride);
        self.multiply(a, k, alpha, &mut sums, stride);
        if whole_rows && stride == width {
            // SAFETY: this task alone writes these rows.
            return unsafe { out.encode(at, &sums) };
        }
        for (i, row) in sums.chunks_exact(stride).enumerate() {
            // SAFETY: this task alone writes these columns of these rows.
            unsafe { out.encode(at + i * n, &row[..width]) };
        }
    }

    /// `c = alpha · A B` for this block; rows of `c` lie `stride` apart.
    fn multiply(&self, a: Operand<'_>, k: usize, alpha: f32, c: &mut [f32], stride: usize) {
        let width = self.columns.len();
        if k == 0 {
            return c.fill(0.0);
        }
        let kernel = U::kernel();
        let rows = self.rows.len();
        let tile_rows = rows.div_ceil(rows.div_ceil(TILE_M));
        let mut decoded = BlockA::<U>::new(rows);
        let block = U::DEPTH * U::PER;
        for (index, start) in (0..k).step_by(block).enumerate() {
            let depth = start..k.min(start + block);
            let units = depth.len().div_ceil(U::PER);
            let store =
                Store { accumulate: start > 0, alpha: if depth.end == k { alpha } else { 1.0 } };
            decoded.fill(a, self.rows.clone(), depth);
            for column in (0..width).step_by(TILE_N) {
                let panel = (self.columns.start + column) / TILE_N;
                let b = &self.packed[panel_start::<U>(index, panel, self.panels, units)..];
                for row in (0..rows).step_by(tile_rows) {
                    let tile = TileC { data: &mut c[row * stride + column..], stride };
                    let count = (rows - row).min(tile_rows);
                    let columns = (width - column).min(TILE_N);
                    kernel(decoded.tile(row), b, tile, count, columns, units, store);
                }
            }
        }
    }
}
