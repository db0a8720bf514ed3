//! Products of a few rows with a matrix whose columns are contiguous: generating one token.
//!
//! Packing B would cost more than the product, so each column is decoded and used at once.

use super::GemmShape;
use super::pack::Operand;
use crate::math::dot;
use crate::parallel::{Scratch, for_each_task};
use crate::tensor::SharedOutput;

/// Most rows of A for which this is faster.
const ROWS: usize = 4;
/// Columns of C in one task.
const COLUMNS: usize = 64;

/// Whether [`few_rows`] should compute a product.
pub(super) fn suits(m: usize, b: &Operand<'_>) -> bool {
    m <= ROWS && b.matrix.row_stride == 1
}

/// `C = alpha · A B` for one item whose C starts at element `c`.
pub(super) fn few_rows(
    shape: GemmShape,
    alpha: f32,
    a: Operand<'_>,
    b: Operand<'_>,
    c: usize,
    out: SharedOutput<'_>,
    parallel: bool,
) {
    let GemmShape { m, n, k } = shape;
    let mut left = Scratch::<f32>::new(m * k);
    if k > 0 {
        for (row, out) in left.chunks_exact_mut(k).enumerate() {
            a.along_row::<f32>(row, 0, out);
        }
    }
    let left = &*left;
    let task = |task: usize| {
        let columns = task * COLUMNS..n.min((task + 1) * COLUMNS);
        let mut right = Scratch::<f32>::new(k);
        let mut results = [[0.0_f32; COLUMNS]; ROWS];
        for (at, column) in columns.clone().enumerate() {
            b.along_column::<f32>(0, column, &mut right);
            for row in 0..m {
                results[row][at] = alpha * dot(&left[row * k..][..k], &right);
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
