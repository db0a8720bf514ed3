//! Layer norm and RMS norm over the last axis, and their gradients.
//!
//! ```text
//! layer norm   h = (x - mean x) / √(var x + eps)      rms norm   h = x / √(mean x² + eps)
//! y = alpha · (h · weight + bias)
//! ```

use crate::math::sum_over;
use crate::parallel::{Scratch, Shared, for_each_row_block, rows_per_task};
use crate::simd::simd_fn;
use crate::{Error, Input, Output};

/// Which norm, over how many elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// Elements of the last axis.
    pub width: usize,
    /// Added to the variance or mean square.
    pub eps: f32,
    /// Whether the mean is taken away first: layer norm; else RMS norm.
    pub centred: bool,
}

/// Outputs of the gradient, each computed if it is there, with the factor of each.
#[derive(Debug, Default)]
pub struct NormGradients<'a> {
    /// Gradient of x, `[rows, width]`.
    pub x: Option<(Output<'a>, f32)>,
    /// Gradient of the weight, `[width]`.
    pub weight: Option<(Output<'a>, f32)>,
    /// Gradient of the bias, `[width]`.
    pub bias: Option<(Output<'a>, f32)>,
}

impl Norm {
    fn rows(&self, elements: usize) -> Result<usize, Error> {
        if self.width == 0 && elements > 0 {
            let reason = format!("{elements} elements cannot have a last axis of none");
            return Err(Error::Shape { kernel: "norm", reason });
        }
        Ok(elements.checked_div(self.width).unwrap_or(0))
    }

    /// A vector of `width` parameters in f32, or ones or zeros.
    fn parameter(
        &self,
        name: &'static str,
        values: Option<Input<'_>>,
        default: f32,
    ) -> Result<Scratch<f32>, Error> {
        let mut out = Scratch::new(self.width);
        match values {
            Some(values) => {
                values.expect("norm", name, self.width)?;
                values.decode(0, &mut out);
            }
            None => out.fill(default),
        }
        Ok(out)
    }

    /// `y = alpha · (h · weight + bias)` for x `[rows, width]`, weight and bias `[width]`.
    ///
    /// # Errors
    /// [`Error::Shape`] for elements of width 0, [`Error::Length`] if sizes disagree.
    pub fn forward(
        &self,
        x: Input<'_>,
        weight: Option<Input<'_>>,
        bias: Option<Input<'_>>,
        alpha: f32,
        mut y: Output<'_>,
    ) -> Result<(), Error> {
        let rows = self.rows(x.len())?;
        x.expect("norm", "x", rows * self.width)?;
        y.expect("norm", "y", rows * self.width)?;
        let weight = self.parameter("weight", weight, 1.0)?;
        let bias = self.parameter("bias", bias, 0.0)?;
        let y = y.share();
        let (weight, bias) = (&*weight, &*bias);
        for_each_row_block(rows, self.width, |block| {
            let mut values = Scratch::<f32>::new(block.len() * self.width);
            x.decode(block.start * self.width, &mut values);
            for row in values.chunks_exact_mut(self.width) {
                forward_row(row, weight, bias, self.eps, self.centred, alpha);
            }
            // SAFETY: blocks of rows are disjoint.
            unsafe { y.encode(block.start * self.width, &values) };
        });
        Ok(())
    }

    /// Gradients from x `[rows, width]`, the weight and the upstream gradient `[rows, width]`.
    ///
    /// With `g = dy · weight`: `dx = (g - h · mean(g h) [- mean g]) / σ`, `dweight = Σ_rows dy · h`,
    /// `dbias = Σ_rows dy`, each times its factor. Sums over rows are formed in blocks of a fixed
    /// size.
    ///
    /// # Errors
    /// As [`Norm::forward`].
    pub fn backward(
        &self,
        x: Input<'_>,
        weight: Option<Input<'_>>,
        dy: Input<'_>,
        mut gradients: NormGradients<'_>,
    ) -> Result<(), Error> {
        let width = self.width;
        let rows = self.rows(x.len())?;
        x.expect("norm gradient", "x", rows * width)?;
        dy.expect("norm gradient", "dy", rows * width)?;
        let weight = self.parameter("weight", weight, 1.0)?;
        for (out, name, len) in [
            (&gradients.x, "dx", rows * width),
            (&gradients.weight, "dweight", width),
            (&gradients.bias, "dbias", width),
        ] {
            if let Some((out, _)) = out {
                out.expect("norm gradient", name, len)?;
            }
        }
        let dx = gradients.x.as_mut().map(|(out, scale)| (out.share(), *scale));
        let blocks = rows.div_ceil(rows_per_task(width));
        let mut partial = Scratch::<f32>::new(blocks * 2 * width);
        let shared = Shared::new(&mut partial);
        let weight = &*weight;
        for_each_row_block(rows, width, |block| {
            let at = block.start / rows_per_task(width) * 2 * width;
            // SAFETY: each block has its own pair of partial sums.
            let sums = unsafe { shared.slice(at, 2 * width) };
            sums.fill(0.0);
            let (dweight, dbias) = sums.split_at_mut(width);
            let mut values = Scratch::<f32>::new(block.len() * width);
            let mut upstream = Scratch::<f32>::new(block.len() * width);
            x.decode(block.start * width, &mut values);
            dy.decode(block.start * width, &mut upstream);
            let scale = dx.map_or(0.0, |(_, scale)| scale);
            for (row, dy) in values.chunks_exact_mut(width).zip(upstream.chunks_exact(width)) {
                backward_row(row, weight, dy, dweight, dbias, self.eps, self.centred, scale);
            }
            if let Some((out, _)) = &dx {
                // SAFETY: blocks of rows are disjoint.
                unsafe { out.encode(block.start * width, &values) };
            }
        });
        for (i, gradient) in [gradients.weight, gradients.bias].into_iter().enumerate() {
            let Some((mut out, scale)) = gradient else { continue };
            let mut sum = Scratch::<f32>::new(width);
            sum.fill(0.0);
            for part in partial.chunks_exact((2 * width).max(1)) {
                for (sum, part) in sum.iter_mut().zip(&part[i * width..][..width]) {
                    *sum += part;
                }
            }
            sum.iter_mut().for_each(|x| *x *= scale);
            // SAFETY: nothing else writes.
            unsafe { out.share().encode(0, &sum) };
        }
        Ok(())
    }
}

/// Mean (0 if not centred) and 1/σ of a row.
#[inline(always)]
fn statistics(x: &[f32], eps: f32, centred: bool) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = if centred { sum_over([x], |[x]| x) / n } else { 0.0 };
    let square = sum_over([x], |[x]| (x - mean) * (x - mean)) / n;
    (mean, 1.0 / (square + eps).sqrt())
}

simd_fn! {
    fn forward_row[FMA](
        x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32, centred: bool, alpha: f32,
    ) {
        let (mean, inverse) = statistics(x, eps, centred);
        for ((x, w), b) in x.iter_mut().zip(weight).zip(bias) {
            *x = alpha * ((*x - mean) * inverse * w + b);
        }
    }
}

simd_fn! {
    /// Replaces the row of x by `scale · dx` and adds to the parameters' sums.
    fn backward_row[FMA](
        x: &mut [f32], weight: &[f32], dy: &[f32], dweight: &mut [f32], dbias: &mut [f32],
        eps: f32, centred: bool, scale: f32,
    ) {
        let n = x.len();
        let (weight, dy) = (&weight[..n], &dy[..n]);
        let (dweight, dbias) = (&mut dweight[..n], &mut dbias[..n]);
        let (mean, inverse) = statistics(x, eps, centred);
        for i in 0..n {
            let h = (x[i] - mean) * inverse;
            x[i] = h;
            dweight[i] += dy[i] * h;
            dbias[i] += dy[i];
        }
        let along = sum_over([x, dy, weight], |[h, dy, w]| dy * w * h) / n as f32;
        let shift = if centred { sum_over([dy, weight], |[dy, w]| dy * w) / n as f32 } else { 0.0 };
        for i in 0..n {
            x[i] = scale * inverse * (dy[i] * weight[i] - shift - x[i] * along);
        }
    }
}
