//! From codes in memory to the layouts that the micro-kernels read.

use std::ops::Range;

use super::Matrix;
use super::micro::{TILE_N, TileA};
use super::units::{CodeRows, Decoder, PackedRows, Unit};
use crate::parallel::Scratch;

/// One operand of one batch item with its decoder; `origin` is the item's first element.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a> {
    pub matrix: Matrix<'a>,
    pub origin: usize,
    pub decoder: &'a Decoder,
}

impl Operand<'_> {
    fn codes(&self, row: usize, column: usize, count: usize) -> &[u8] {
        let at = self.origin + row * self.matrix.row_stride + column * self.matrix.column_stride;
        let width = self.matrix.format.bytes();
        &self.matrix.bytes[at * width..(at + count) * width]
    }

    /// The codes of a whole column, where its `depth` elements are neighbours in memory.
    pub(super) fn column_codes(&self, column: usize, depth: usize) -> &[u8] {
        debug_assert!(self.matrix.row_stride == 1);
        self.codes(0, column, depth)
    }

    /// The one-byte codes of a block whose columns are neighbours in memory, `depth` of them
    /// `stride` elements apart; only meaningful for one-byte formats.
    fn rows_of_codes(
        &self,
        depth: Range<usize>,
        width: Range<usize>,
        stride: usize,
    ) -> CodeRows<'_> {
        CodeRows {
            codes: self.matrix.bytes,
            first: self.origin + depth.start * stride + width.start,
            stride,
            width: width.len(),
            depth: depth.len(),
        }
    }

    /// Decodes `count` elements from `(row, column)` on, along the row.
    pub(super) fn along_row<U: Unit>(&self, row: usize, column: usize, out: &mut [U::Half]) {
        if self.matrix.column_stride == 1 {
            return U::decode(self.decoder, self.codes(row, column, out.len()), out);
        }
        for (i, out) in out.iter_mut().enumerate() {
            U::decode(self.decoder, self.codes(row, column + i, 1), std::slice::from_mut(out));
        }
    }

    /// The same down the column.
    pub(super) fn along_column<U: Unit>(&self, row: usize, column: usize, out: &mut [U::Half]) {
        let turned = Operand { matrix: self.matrix.transposed(), ..*self };
        turned.along_row::<U>(column, row, out);
    }
}

/// A decoded block of rows of A: `rows × units`, one of two layouts.
pub(super) struct BlockA<U: Unit> {
    data: Scratch<U>,
    row_stride: usize,
    depth_stride: usize,
}

impl<U: Unit> BlockA<U> {
    pub(super) fn new(rows: usize) -> Self {
        // 16 units of padding keep the rows of a tile in different cache sets.
        Self { data: Scratch::new(rows * (U::DEPTH + 16)), row_stride: 0, depth_stride: 0 }
    }

    /// Decodes `rows` of `a`, columns `depth` (in elements).
    pub(super) fn fill(&mut self, a: Operand<'_>, rows: Range<usize>, depth: Range<usize>) {
        let units = depth.len().div_ceil(U::PER);
        if a.matrix.row_stride == 1 && a.matrix.column_stride != 1 {
            (self.row_stride, self.depth_stride) = (1, rows.len());
            let source = a.rows_of_codes(depth.clone(), rows.clone(), a.matrix.column_stride);
            let packed =
                PackedRows { out: &mut self.data, group_stride: 32, unit_stride: rows.len() };
            if U::pack_rows(a.decoder, source, packed) {
                return;
            }
            let mut pair = [Scratch::<U::Half>::new(rows.len()), Scratch::new(rows.len())];
            for (unit, out) in self.data.chunks_exact_mut(rows.len()).take(units).enumerate() {
                join_pair(&mut pair, U::PER, depth.start + unit * U::PER, depth.end, |k, half| {
                    a.along_column::<U>(rows.start, k, half);
                });
                join::<U>(&pair[0], &pair[1], out);
            }
            return;
        }
        (self.row_stride, self.depth_stride) = (U::DEPTH + 16, 1);
        for (row, out) in rows.zip(self.data.chunks_exact_mut(U::DEPTH + 16)) {
            let halves = U::halves(&mut out[..units]);
            let (numbers, padding) = halves.split_at_mut(depth.len());
            a.along_row::<U>(row, depth.start, numbers);
            padding.fill(U::Half::default());
        }
    }

    /// The tile that starts at `row` of the block.
    pub(super) fn tile(&self, row: usize) -> TileA<'_, U> {
        TileA {
            data: &self.data[row * self.row_stride..],
            row_stride: self.row_stride,
            depth_stride: self.depth_stride,
        }
    }
}

/// Fills the halves of a unit of depth that starts at `k`; a half beyond `end` becomes zero.
fn join_pair<H: crate::parallel::Plain + Default>(
    pair: &mut [Scratch<H>; 2],
    per: usize,
    k: usize,
    end: usize,
    fill: impl Fn(usize, &mut [H]),
) {
    for (i, half) in pair.iter_mut().take(per).enumerate() {
        if k + i < end { fill(k + i, half) } else { half.fill(H::default()) }
    }
}

#[inline]
fn join<U: Unit>(low: &[U::Half], high: &[U::Half], out: &mut [U]) {
    for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
        *out = U::join(*low, *high);
    }
}

/// Units that a packed B of `depth × columns` takes.
pub(super) fn packed_len<U: Unit>(depth: usize, columns: usize) -> usize {
    depth.div_ceil(U::PER) * columns.div_ceil(TILE_N) * TILE_N
}

/// First unit of a panel in a packed B with `panels` panels: blocks of depth, then panels, then
/// depth, then columns.
pub(super) fn panel_start<U: Unit>(
    block: usize,
    panel: usize,
    panels: usize,
    block_units: usize,
) -> usize {
    (block * U::DEPTH * panels + panel * block_units) * TILE_N
}

/// Zeroes the columns that the last panel has beyond `columns`.
fn clear_padding<U: Unit>(out: &mut [U], columns: usize, panel_len: usize) {
    let live = columns % TILE_N;
    if live > 0 {
        let panel = &mut out[columns / TILE_N * panel_len..][..panel_len];
        for row in panel.chunks_exact_mut(TILE_N) {
            row[live..].fill(U::default());
        }
    }
}

/// Packs one block of depth of the columns `columns`; `out` is that block's part of the packing.
pub(super) fn pack_b<U: Unit>(
    b: Operand<'_>,
    depth: Range<usize>,
    columns: Range<usize>,
    out: &mut [U],
) {
    let units = depth.len().div_ceil(U::PER);
    let panel_len = units * TILE_N;
    if b.matrix.column_stride == 1 {
        let source = b.rows_of_codes(depth.clone(), columns.clone(), b.matrix.row_stride);
        let packed = PackedRows { out: &mut *out, group_stride: panel_len, unit_stride: TILE_N };
        if U::pack_rows(b.decoder, source, packed) {
            clear_padding(out, columns.len(), panel_len);
            return;
        }
        let width = columns.len().next_multiple_of(TILE_N);
        let mut pair = [Scratch::<U::Half>::new(width), Scratch::new(width)];
        for half in &mut pair {
            half[columns.len()..].fill(U::Half::default());
        }
        for unit in 0..units {
            join_pair(&mut pair, U::PER, depth.start + unit * U::PER, depth.end, |k, half| {
                b.along_row::<U>(k, columns.start, &mut half[..columns.len()]);
            });
            for panel in 0..width / TILE_N {
                let part = panel * TILE_N..(panel + 1) * TILE_N;
                let out = &mut out[panel * panel_len + unit * TILE_N..][..TILE_N];
                join(&pair[0][part.clone()], &pair[1][part], out);
            }
        }
        return;
    }
    let mut turned = Scratch::<U>::new(panel_len);
    for (panel, out) in out.chunks_exact_mut(panel_len).enumerate() {
        let first = columns.start + panel * TILE_N;
        if first >= columns.end {
            break;
        }
        let live = (columns.end - first).min(TILE_N);
        for column in 0..live {
            let halves = U::halves(&mut turned[column * units..][..units]);
            let (numbers, padding) = halves.split_at_mut(depth.len());
            b.along_column::<U>(depth.start, first + column, numbers);
            padding.fill(U::Half::default());
        }
        turned[live * units..].fill(U::default());
        for (unit, out) in out.chunks_exact_mut(TILE_N).enumerate() {
            for (column, out) in out.iter_mut().enumerate() {
                *out = turned[column * units + unit];
            }
        }
    }
}
