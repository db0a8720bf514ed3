//! Softmax over the last axis and cross-entropy, with their gradients.

use crate::math::{self, max_of, sum_over};
use crate::parallel::{Scratch, Shared, for_each_row_block, rows_per_task};
use crate::simd::simd_fn;
use crate::{Error, Input, Output};

fn rows_of(kernel: &'static str, elements: usize, width: usize) -> Result<usize, Error> {
    if width == 0 && elements > 0 {
        let reason = format!("{elements} elements cannot have a last axis of none");
        return Err(Error::Shape { kernel, reason });
    }
    Ok(elements.checked_div(width).unwrap_or(0))
}

simd_fn! {
    /// Replaces z by `e^(mult z - max)`; returns the maximum of `mult z` and the sum.
    pub(crate) fn exponentials[FMA](z: &mut [f32], mult: f32) -> (f32, f32) {
        if mult != 1.0 {
            z.iter_mut().for_each(|z| *z *= mult);
        }
        let max = max_of(z);
        let mut sums = [0.0_f32; 32];
        let (blocks, rest) = z.as_chunks_mut::<32>();
        for block in blocks {
            for (z, sum) in block.iter_mut().zip(&mut sums) {
                *z = math::exp::<FMA>(*z - max);
                *sum += *z;
            }
        }
        let mut last = 0.0;
        for z in rest {
            *z = math::exp::<FMA>(*z - max);
            last += *z;
        }
        (max, math::add_lanes(sums) + last)
    }
}

simd_fn! {
    pub(crate) fn scale_by[FMA](x: &mut [f32], scale: f32) {
        x.iter_mut().for_each(|x| *x *= scale);
    }
}

/// `y = alpha · softmax(mult · x)` for x `[rows, width]`.
///
/// # Errors
/// [`Error::Shape`] for elements of width 0, [`Error::Length`] if sizes disagree.
pub fn softmax(
    x: Input<'_>,
    width: usize,
    mult: f32,
    alpha: f32,
    mut y: Output<'_>,
) -> Result<(), Error> {
    let rows = rows_of("softmax", x.len(), width)?;
    x.expect("softmax", "x", rows * width)?;
    y.expect("softmax", "y", rows * width)?;
    let y = y.share();
    for_each_row_block(rows, width, |block| {
        let mut values = Scratch::<f32>::new(block.len() * width);
        x.decode(block.start * width, &mut values);
        for row in values.chunks_exact_mut(width) {
            let (_, sum) = exponentials(row, mult);
            scale_by(row, alpha / sum);
        }
        // SAFETY: blocks of rows are disjoint.
        unsafe { y.encode(block.start * width, &values) };
    });
    Ok(())
}

simd_fn! {
    fn softmax_gradient_row[FMA](y: &mut [f32], dy: &[f32], y_scale: f32, scale: f32) {
        let dy = &dy[..y.len()];
        let along = sum_over([y, dy], |[y, dy]| y * dy) * y_scale;
        let factor = y_scale * scale;
        for (y, dy) in y.iter_mut().zip(dy) {
            *y = *y * factor * (dy - along);
        }
    }
}

/// `dx = scale · p · (dy - Σ p dy)` with `p = y_scale · y` the plain softmax, for `[rows, width]`.
///
/// `y_scale` is 1/alpha where y is the output of [`softmax`]; `scale` holds `mult` if the gradient
/// is to have it.
///
/// # Errors
/// As [`softmax`].
pub fn softmax_gradient(
    y: Input<'_>,
    y_scale: f32,
    dy: Input<'_>,
    width: usize,
    scale: f32,
    mut dx: Output<'_>,
) -> Result<(), Error> {
    let rows = rows_of("softmax gradient", y.len(), width)?;
    y.expect("softmax gradient", "y", rows * width)?;
    dy.expect("softmax gradient", "dy", rows * width)?;
    dx.expect("softmax gradient", "dx", rows * width)?;
    let dx = dx.share();
    for_each_row_block(rows, width, |block| {
        let mut values = Scratch::<f32>::new(block.len() * width);
        let mut upstream = Scratch::<f32>::new(block.len() * width);
        y.decode(block.start * width, &mut values);
        dy.decode(block.start * width, &mut upstream);
        for (y, dy) in values.chunks_exact_mut(width).zip(upstream.chunks_exact(width)) {
            softmax_gradient_row(y, dy, y_scale, scale);
        }
        // SAFETY: blocks of rows are disjoint.
        unsafe { dx.encode(block.start * width, &values) };
    });
    Ok(())
}

/// Logits `[rows, classes]` and the class of each row.
#[derive(Clone, Copy, Debug)]
pub struct Classification<'a> {
    /// Logits before `mult`.
    pub logits: Input<'a>,
    /// Number of classes.
    pub classes: usize,
    /// Factor of the logits.
    pub mult: f32,
    /// Class of each row: little-endian u32.
    pub targets: &'a [u8],
    /// Rows whose little-endian u32 is 0 here are left out: their loss and gradient are 0.
    pub mask: Option<&'a [u8]>,
}

impl Classification<'_> {
    fn check(&self) -> Result<usize, Error> {
        let rows = rows_of("cross entropy", self.logits.len(), self.classes)?;
        self.logits.expect("cross entropy", "logits", rows * self.classes)?;
        if self.targets.len() != rows * 4 {
            return Err(Error::Length {
                kernel: "cross entropy",
                operand: "targets",
                found: self.targets.len() / 4,
                expected: rows,
            });
        }
        if self.mask.is_some_and(|mask| mask.len() != rows * 4) {
            return Err(Error::Length {
                kernel: "cross entropy",
                operand: "mask",
                found: self.mask.map_or(0, |mask| mask.len() / 4),
                expected: rows,
            });
        }
        Ok(rows)
    }

    /// Whether the mask leaves a row out.
    fn is_left_out(&self, row: usize) -> bool {
        self.mask.is_some_and(|mask| mask[row * 4..row * 4 + 4] == [0; 4])
    }

    /// Number of rows that are not left out, at least 1.
    pub fn counted(&self) -> f64 {
        let rows = self.targets.len() / 4;
        match self.mask {
            Some(mask) => mask.chunks_exact(4).filter(|word| *word != [0; 4]).count(),
            None => rows,
        }
        .max(1) as f64
    }

    fn target(&self, row: usize) -> Option<usize> {
        let bytes = &self.targets[row * 4..row * 4 + 4];
        let target = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
        (target < self.classes).then_some(target)
    }

    /// `Σ_rows -ln softmax(mult · logits)[target]`; divide by the rows, or by
    /// [`counted`](Self::counted) with a mask, for the mean. A target that
    /// is no class gives NaN.
    ///
    /// # Errors
    /// [`Error::Length`] if sizes disagree.
    pub fn loss_sum(&self) -> Result<f32, Error> {
        let rows = self.check()?;
        let width = self.classes;
        let mut partial = Scratch::<f32>::new(rows.div_ceil(rows_per_task(width)));
        let shared = Shared::new(&mut partial);
        for_each_row_block(rows, width, |block| {
            let mut values = Scratch::<f32>::new(block.len() * width);
            self.logits.decode(block.start * width, &mut values);
            let mut losses = Scratch::<f32>::new(block.len());
            for (i, row) in values.chunks_exact_mut(width).enumerate() {
                if self.is_left_out(block.start + i) {
                    losses[i] = 0.0;
                    continue;
                }
                let own = self.target(block.start + i).map_or(f32::NAN, |class| row[class]);
                let (max, sum) = exponentials(row, self.mult);
                losses[i] = sum.ln() - (own * self.mult - max);
            }
            // SAFETY: each block has its own partial sum.
            let out = unsafe { shared.slice(block.start / rows_per_task(width), 1) };
            out[0] = sum_over([&losses], |[x]| x);
        });
        Ok(sum_over([&partial], |[x]| x))
    }

    /// `scale · (softmax(mult · logits) - onehot(target))` for `[rows, classes]`; a row whose target
    /// is no class is NaN.
    ///
    /// # Errors
    /// As [`Classification::loss_sum`].
    pub fn gradient(&self, scale: f32, mut out: Output<'_>) -> Result<(), Error> {
        let rows = self.check()?;
        let width = self.classes;
        out.expect("cross entropy gradient", "dlogits", rows * width)?;
        let out = out.share();
        for_each_row_block(rows, width, |block| {
            let mut values = Scratch::<f32>::new(block.len() * width);
            self.logits.decode(block.start * width, &mut values);
            for (i, row) in values.chunks_exact_mut(width).enumerate() {
                if self.is_left_out(block.start + i) {
                    row.fill(0.0);
                    continue;
                }
                let (_, sum) = exponentials(row, self.mult);
                let Some(target) = self.target(block.start + i) else {
                    row.fill(f32::NAN);
                    continue;
                };
                row[target] = 0.0;
                let others = sum_over([row], |[e]| e);
                scale_by(row, scale / sum);
                // 1 - p without cancellation when p is near 1.
                row[target] = -scale * (others / sum);
            }
            // SAFETY: blocks of rows are disjoint.
            unsafe { out.encode(block.start * width, &values) };
        });
        Ok(())
    }
}
