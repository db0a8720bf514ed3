//! The AdamW update, in place, with weight and moments in any format.

use crate::parallel::{Scratch, for_each_task};
use crate::simd::simd_fn;
use crate::{Error, Input, Output};

/// Constants of the update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Weight decay per unit of learning rate; `lr_scale` plays no part in it.
    pub weight_decay: f32,
    /// Factor of the learning rate for this tensor.
    pub lr_scale: f32,
}

/// What changes from step to step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// Learning rate.
    pub lr: f32,
    /// Number of this update, from 1 on: the bias correction.
    pub step: f32,
    /// Factor of the gradient: clipping, or 0 to leave everything as it is.
    pub grad_factor: f32,
}

const CHUNK: usize = 1024;
const TASK: usize = 8 * CHUNK;

impl AdamW {
    /// ```text
    /// g = grad_factor · gradient      rate = lr · lr_scale
    /// m = beta1 m + (1 - beta1) g     v = beta2 v + (1 - beta2) g²
    /// w = w (1 - lr · weight_decay) - rate · (m / (1 - beta1^t)) / (√(v / (1 - beta2^t)) + eps)
    /// ```
    /// Everything is f32 inside, and
    /// w, m, v are rounded once into their formats. Decoupled decay: Loshchilov, Hutter, "Decoupled
    /// weight decay regularization", ICLR 2019, algorithm 2.
    ///
    /// # Errors
    /// [`Error::Length`] if the four tensors differ in size.
    pub fn update(
        &self,
        now: AdamWStep,
        weight: Output<'_>,
        gradient: Input<'_>,
        first: Output<'_>,
        second: Output<'_>,
    ) -> Result<(), Error> {
        self.update_from(now, [None; 3], weight, gradient, first, second)
    }

    /// As [`AdamW::update`], with the old weight, first and second moment read from elsewhere, in
    /// formats of their own, where `old` has them. With a `grad_factor` of 0 they are copied.
    ///
    /// # Errors
    /// As [`AdamW::update`].
    pub fn update_from(
        &self,
        now: AdamWStep,
        old: [Option<Input<'_>>; 3],
        mut weight: Output<'_>,
        gradient: Input<'_>,
        mut first: Output<'_>,
        mut second: Output<'_>,
    ) -> Result<(), Error> {
        let len = weight.len();
        weight.expect("adamw", "weight", len)?;
        gradient.expect("adamw", "gradient", len)?;
        first.expect("adamw", "first moment", len)?;
        second.expect("adamw", "second moment", len)?;
        for old in old.iter().flatten() {
            old.expect("adamw", "old value", len)?;
        }
        let skip = now.grad_factor == 0.0;
        if skip && old.iter().all(Option::is_none) {
            return Ok(());
        }
        let rate = now.lr * self.lr_scale;
        let step = f64::from(now.step);
        let correct = |beta: f32| (1.0 / (1.0 - f64::from(beta).powf(step))) as f32;
        let constants = Constants {
            adam: *self,
            grad_factor: now.grad_factor,
            rate: rate * correct(self.beta1),
            second_factor: correct(self.beta2),
            keep: 1.0 - now.lr * self.weight_decay,
        };
        let tensors = [weight.share(), first.share(), second.share()];
        for_each_task(len.div_ceil(TASK), |task| {
            let range = task * TASK..len.min((task + 1) * TASK);
            // SAFETY: tasks have disjoint ranges.
            let floats = tensors.map(|tensor| unsafe { tensor.as_f32(range.start, range.len()) });
            if old.iter().all(Option::is_none)
                && let [Some(w), Some(m), Some(v)] = floats
            {
                let mut g = Scratch::<f32>::new(CHUNK);
                for at in (0..range.len()).step_by(CHUNK) {
                    let part = at..range.len().min(at + CHUNK);
                    let g = &mut g[..part.len()];
                    gradient.decode(range.start + at, g);
                    let moments = (&mut m[part.clone()], &mut v[part.clone()]);
                    update_chunk(constants, &mut w[part], g, moments.0, moments.1);
                }
                return;
            }
            let mut values = Scratch::<f32>::new(4 * CHUNK);
            let (w, rest) = values.split_at_mut(CHUNK);
            let (m, rest) = rest.split_at_mut(CHUNK);
            let (v, g) = rest.split_at_mut(CHUNK);
            for start in range.clone().step_by(CHUNK) {
                let count = (range.end - start).min(CHUNK);
                let old_values = [&mut *w, &mut *m, &mut *v];
                for ((tensor, old), values) in tensors.iter().zip(old).zip(old_values) {
                    match old {
                        Some(old) => old.decode(start, &mut values[..count]),
                        None => {
                            // SAFETY: tasks have disjoint ranges; the view ends before `encode`.
                            let old = unsafe { tensor.view(start, count) };
                            old.decode(0, &mut values[..count]);
                        }
                    }
                }
                if !skip {
                    gradient.decode(start, &mut g[..count]);
                    let moments = (&mut m[..count], &mut v[..count]);
                    update_chunk(constants, &mut w[..count], &g[..count], moments.0, moments.1);
                }
                for ((tensor, old), values) in tensors.iter().zip(old).zip([&*w, &*m, &*v]) {
                    if skip && old.is_none() {
                        continue;
                    }
                    // SAFETY: tasks have disjoint ranges.
                    unsafe { tensor.encode(start, &values[..count]) };
                }
            }
        });
        Ok(())
    }
}

#[derive(Clone, Copy)]
struct Constants {
    adam: AdamW,
    grad_factor: f32,
    rate: f32,
    second_factor: f32,
    keep: f32,
}

simd_fn! {
    fn update_chunk[FMA](c: Constants, w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        let n = w.len();
        let (g, m, v) = (&g[..n], &mut m[..n], &mut v[..n]);
        let AdamW { beta1, beta2, eps, .. } = c.adam;
        for i in 0..n {
            let g = g[i] * c.grad_factor;
            m[i] = beta1 * m[i] + (1.0 - beta1) * g;
            v[i] = beta2 * v[i] + (1.0 - beta2) * g * g;
            let root = (v[i] * c.second_factor).sqrt() + eps;
            w[i] = w[i] * c.keep - c.rate * (m[i] / root);
        }
    }
}
