//! Rows of a table by index, and sums into them.

use crate::parallel::{Scratch, for_each_row_block, rows_per_task};
use crate::softmax::scale_by;
use crate::{Error, Input, Output};

fn index(ids: &[u8], at: usize) -> usize {
    let word = &ids[at * 4..at * 4 + 4];
    u32::from_le_bytes([word[0], word[1], word[2], word[3]]) as usize
}

fn shape_error(kernel: &'static str, reason: &str) -> Error {
    Error::Shape { kernel, reason: reason.to_owned() }
}

/// `out[i] = alpha · table[ids[i]]` for table `[rows, width]`, ids little-endian u32.
///
/// An id beyond the table gives a row of NaN.
///
/// # Errors
/// [`Error::Length`] or [`Error::Shape`] if sizes disagree.
pub fn gather(
    table: Input<'_>,
    width: usize,
    ids: &[u8],
    alpha: f32,
    mut out: Output<'_>,
) -> Result<(), Error> {
    let count = ids.len() / 4;
    out.expect("gather", "out", count * width)?;
    if width == 0 {
        return Ok(());
    }
    let rows = table.len() / width;
    table.expect("gather", "table", rows * width)?;
    let out = out.share();
    for_each_row_block(count, width, |block| {
        let mut values = Scratch::<f32>::new(block.len() * width);
        for (at, row) in block.clone().zip(values.chunks_exact_mut(width)) {
            match index(ids, at) {
                id if id < rows => table.decode(id * width, row),
                _ => row.fill(f32::NAN),
            }
        }
        if alpha != 1.0 {
            scale_by(&mut values, alpha);
        }
        // SAFETY: blocks of rows are disjoint.
        unsafe { out.encode(block.start * width, &values) };
    });
    Ok(())
}

/// `out[r] = alpha · Σ updates[i]` over the `i` with `ids[i] = r`, in ascending order of `i`, for
/// out `[rows, width]`.
///
/// Ids beyond the table are dropped.
///
/// # Errors
/// [`Error::Length`] or [`Error::Shape`] if sizes disagree.
pub fn scatter_add(
    updates: Input<'_>,
    width: usize,
    ids: &[u8],
    alpha: f32,
    mut out: Output<'_>,
) -> Result<(), Error> {
    let count = ids.len() / 4;
    updates.expect("scatter add", "updates", count * width)?;
    if width == 0 {
        return Ok(());
    }
    let rows = out.len() / width;
    out.expect("scatter add", "out", rows * width)?;
    if count > u32::MAX as usize {
        return Err(shape_error("scatter add", "more than 2^32 updates"));
    }
    // Updates by row, in order: positions of row r are order[first[r] .. first[r + 1]].
    let mut first = Scratch::<u32>::new(rows + 2);
    let mut order = Scratch::<u32>::new(count);
    first.fill(0);
    for at in 0..count {
        let id = index(ids, at);
        if id < rows {
            first[id + 2] += 1;
        }
    }
    for row in 2..rows + 2 {
        first[row] += first[row - 1];
    }
    for at in 0..count {
        let id = index(ids, at);
        if id < rows {
            order[first[id + 1] as usize] = at as u32;
            first[id + 1] += 1;
        }
    }
    let (first, order) = (&*first, &*order);
    let out = out.share();
    // A task's work depends on the ids; small blocks even it out.
    let block_rows = (rows_per_task(width) / 8).max(1);
    crate::parallel::for_each_task(rows.div_ceil(block_rows), |task| {
        let block = task * block_rows..rows.min((task + 1) * block_rows);
        let mut sums = Scratch::<f32>::new(block.len() * width);
        let mut update = Scratch::<f32>::new(width);
        sums.fill(0.0);
        for (row, sum) in block.clone().zip(sums.chunks_exact_mut(width)) {
            for at in &order[first[row] as usize..first[row + 1] as usize] {
                updates.decode(*at as usize * width, &mut update);
                for (sum, x) in sum.iter_mut().zip(&*update) {
                    *sum += x;
                }
            }
        }
        if alpha != 1.0 {
            scale_by(&mut sums, alpha);
        }
        // SAFETY: blocks of rows are disjoint.
        unsafe { out.encode(block.start * width, &sums) };
    });
    Ok(())
}
