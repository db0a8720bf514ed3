//! Copies of 1-, 2- and 4-byte elements between layouts: permute, slice, concatenate.

use crate::Error;
use crate::parallel::{Shared, TASK_ELEMENTS, for_each_task};

/// A strided view of a tensor: element `(i, j, ..)` is `offset + i · strides[0] + ..`.
#[derive(Clone, Copy, Debug)]
pub struct Layout<'a> {
    /// First element.
    pub offset: usize,
    /// Elements from one index to the next, for each axis.
    pub strides: &'a [usize],
}

impl Layout<'_> {
    fn last(&self, dims: &[usize]) -> usize {
        let reach = dims.iter().zip(self.strides).map(|(dim, stride)| (dim - 1) * stride);
        self.offset + reach.sum::<usize>()
    }
}

/// Copies the elements of a `dims` tensor from one layout to another; `element_bytes` is 1, 2, 4.
///
/// Layouts of the destination must not map two indices to one element.
///
/// # Errors
/// [`Error::Shape`] if a layout reaches beyond its tensor or has another number of axes.
pub fn copy_strided(
    element_bytes: usize,
    dims: &[usize],
    from: Layout<'_>,
    source: &[u8],
    to: Layout<'_>,
    target: &mut [u8],
) -> Result<(), Error> {
    let shape_error = |reason: String| Err(Error::Shape { kernel: "copy", reason });
    if from.strides.len() != dims.len() || to.strides.len() != dims.len() {
        return shape_error(format!(
            "{} axes with strides for {} and {}",
            dims.len(),
            from.strides.len(),
            to.strides.len()
        ));
    }
    if dims.contains(&0) {
        return Ok(());
    }
    for (layout, bytes) in [(&from, source.len()), (&to, target.len())] {
        let last = layout.last(dims);
        if (last + 1) * element_bytes > bytes {
            let len = bytes / element_bytes;
            return shape_error(format!(
                "{dims:?} with strides {:?} reaches element {last}, the tensor has {len}",
                layout.strides
            ));
        }
    }
    let (dims, pairs) = merge(dims, from.strides, to.strides);
    let (inner, outer) = dims.split_last().map_or((1, &[][..]), |(last, rest)| (*last, rest));
    let (from_step, to_step) = pairs.last().copied().unwrap_or((1, 1));
    let rows: usize = outer.iter().product();
    let per_task = (TASK_ELEMENTS / inner).max(1);
    let target = Shared::new(target);
    for_each_task(rows.div_ceil(per_task), |task| {
        for row in task * per_task..rows.min((task + 1) * per_task) {
            let (mut rest, mut at, mut into) = (row, from.offset, to.offset);
            for (dim, (from, to)) in outer.iter().zip(&pairs).rev() {
                at += rest % dim * from;
                into += rest % dim * to;
                rest /= dim;
            }
            let reach = ((inner - 1) * to_step + 1) * element_bytes;
            // A run with gaps in the target interleaves with the runs of other rows.
            if to_step == 1 {
                // SAFETY: rows of the target are disjoint by the caller's promise on layouts.
                let target = unsafe { target.slice(into * element_bytes, reach) };
                copy_run(element_bytes, &source[at * element_bytes..], from_step, target);
            } else {
                for i in 0..inner {
                    let from = (at + i * from_step) * element_bytes;
                    // SAFETY: as above, for single elements.
                    let target = unsafe {
                        target.slice((into + i * to_step) * element_bytes, element_bytes)
                    };
                    target.copy_from_slice(&source[from..from + element_bytes]);
                }
            }
        }
    });
    Ok(())
}

/// Axes of size 1 dropped and neighbours merged where both layouts allow it.
fn merge(dims: &[usize], from: &[usize], to: &[usize]) -> (Vec<usize>, Vec<(usize, usize)>) {
    let mut merged: Vec<usize> = Vec::new();
    let mut pairs: Vec<(usize, usize)> = Vec::new();
    for (&dim, (&from, &to)) in dims.iter().zip(from.iter().zip(to)) {
        if dim == 1 {
            continue;
        }
        match (merged.last_mut(), pairs.last_mut()) {
            (Some(last), Some(pair)) if *pair == (from * dim, to * dim) => {
                *last *= dim;
                *pair = (from, to);
            }
            _ => {
                merged.push(dim);
                pairs.push((from, to));
            }
        }
    }
    (merged, pairs)
}

/// Copies elements `step` apart into a contiguous run.
fn copy_run(element_bytes: usize, source: &[u8], step: usize, target: &mut [u8]) {
    if step == 1 {
        return target.copy_from_slice(&source[..target.len()]);
    }
    let pairs = target.chunks_exact_mut(element_bytes).zip(source.chunks(element_bytes * step));
    for (target, source) in pairs {
        target.copy_from_slice(&source[..element_bytes]);
    }
}
