//! Random tensors: Philox 4x32-10 by element index, the same bits on every backend.

use onesigma_format::{Noise, philox};

use crate::expression::CHUNK;
use crate::parallel::{TASK_ELEMENTS, for_each_task};
use crate::{Error, Output};

/// What is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Draw {
    /// Uniform in `[low, high)`: `low + (high - low) · u`.
    Uniform {
        /// Lower end, included.
        low: f32,
        /// Upper end, excluded.
        high: f32,
    },
    /// Normal: `mean + std · z`.
    Normal {
        /// Mean.
        mean: f32,
        /// Standard deviation.
        std: f32,
    },
    /// 1 where `u < p`, else 0.
    Bernoulli {
        /// Probability of 1.
        p: f32,
    },
}

/// `out[i] = alpha · draw(i)`, keyed by `noise` and the element's index.
///
/// # Errors
/// [`Error::Format`] for a rounding that there is not.
pub fn random(draw: Draw, noise: Noise, alpha: f32, mut out: Output<'_>) -> Result<(), Error> {
    out.expect_rule()?;
    let len = out.len();
    let out = out.share();
    for_each_task(len.div_ceil(TASK_ELEMENTS), |task| {
        let mut values = [0.0_f32; CHUNK];
        let end = len.min((task + 1) * TASK_ELEMENTS);
        for start in (task * TASK_ELEMENTS..end).step_by(CHUNK) {
            let values = &mut values[..(end - start).min(CHUNK)];
            let noise = Noise { offset: noise.offset + start as u64, ..noise };
            match draw {
                Draw::Uniform { low, high } => {
                    philox::fill_uniform(noise, values);
                    values.iter_mut().for_each(|x| *x = alpha * (low + (high - low) * *x));
                }
                Draw::Normal { mean, std } => {
                    philox::fill_normal(noise, values);
                    values.iter_mut().for_each(|x| *x = alpha * (mean + std * *x));
                }
                Draw::Bernoulli { p } => {
                    philox::fill_uniform(noise, values);
                    values.iter_mut().for_each(|x| *x = if *x < p { alpha } else { 0.0 });
                }
            }
            // SAFETY: tasks write disjoint ranges.
            unsafe { out.encode(start, values) };
        }
    });
    Ok(())
}
