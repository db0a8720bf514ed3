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
    let mut few = [Axis::default(); FEW];
    let mut many;
    let axes = match few.get_mut(..dims.len()) {
        Some(few) => few,
        None => {
            many = vec![Axis::default(); dims.len()];
            &mut many[..]
        }
    };
    let axes = merge(dims, from.strides, to.strides, axes);
    let whole = Axis { dim: 1, from: 1, to: 1 };
    let (last, outer) = axes.split_last().unwrap_or((&whole, &[]));
    let Axis { dim: inner, from: from_step, to: to_step } = *last;
    let rows: usize = outer.iter().map(|axis| axis.dim).product();
    let per_task = (TASK_ELEMENTS / inner).max(1);
    let target = Shared::new(target);
    for_each_task(rows.div_ceil(per_task), |task| {
        for row in task * per_task..rows.min((task + 1) * per_task) {
            let (mut rest, mut at, mut into) = (row, from.offset, to.offset);
            for Axis { dim, from, to } in outer.iter().rev() {
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

/// Axes for which no memory is allocated.
const FEW: usize = 8;

/// An axis with its strides on both sides.
#[derive(Clone, Copy, Default)]
struct Axis {
    dim: usize,
    from: usize,
    to: usize,
}

/// Axes of size 1 dropped and neighbours merged where both layouts allow it, in `axes`, which has
/// room for all.
fn merge<'a>(dims: &[usize], from: &[usize], to: &[usize], axes: &'a mut [Axis]) -> &'a [Axis] {
    let mut count = 0_usize;
    for (&dim, (&from, &to)) in dims.iter().zip(from.iter().zip(to)) {
        if dim == 1 {
            continue;
        }
        let before = count.checked_sub(1).map(|at: usize| axes[at]);
        match before {
            Some(last) if (last.from, last.to) == (from * dim, to * dim) => {
                axes[count - 1] = Axis { dim: last.dim * dim, from, to };
            }
            _ => {
                axes[count] = Axis { dim, from, to };
                count += 1;
            }
        }
    }
    &axes[..count]
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
