//! Continuing a text, token by token.

use crate::Error;
use crate::batch::SplitMix64;
use crate::session::Session;

/// How the next token is drawn from its logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 always takes the likeliest token.
    pub temperature: f64,
    /// Only this many of the likeliest tokens can be drawn; 0 for all.
    pub top_k: usize,
    /// Seed of the draws.
    pub seed: u64,
}

impl Sampling {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`Error::Setting`] for a temperature that is negative or not finite.
    pub fn validate(&self) -> Result<(), Error> {
        if self.temperature.is_finite() && self.temperature >= 0.0 {
            return Ok(());
        }
        Err(Error::Setting {
            name: "--temperature",
            given: self.temperature.to_string(),
            expected: "a number of at least 0".into(),
        })
    }

    /// Draws the `index`th token of a text; a pure function of logits, seed and index. NaN counts
    /// as the least likely.
    pub fn draw(&self, logits: &[f32], index: u64) -> u32 {
        let rank = |&i: &usize| if logits[i].is_nan() { f32::NEG_INFINITY } else { logits[i] };
        let mut order: Vec<usize> = (0..logits.len()).collect();
        // Stable: of equal logits the lower token stands first.
        order.sort_by(|a, b| rank(b).total_cmp(&rank(a)));
        let keep = match (self.temperature, self.top_k) {
            (0.0, _) => 1,
            (_, 0) => order.len(),
            (_, k) => k.min(order.len()),
        };
        order.truncate(keep);
        let Some(best) = order.first().map(rank) else { return 0 };
        let weight = |i: &usize| match keep {
            1 => 1.0,
            _ => (f64::from(rank(i) - best) / self.temperature).exp(),
        };
        let total: f64 = order.iter().map(weight).sum();
        let mut left = SplitMix64::new(self.seed, index).unit() * total;
        for token in &order {
            left -= weight(token);
            if left < 0.0 {
                return *token as u32;
            }
        }
        order[order.len() - 1] as u32
    }
}

/// What knows how likely each next token is.
pub trait NextToken {
    /// Most tokens that it sees.
    fn context(&self) -> usize;

    /// Logits of the token after `window`, which has 1 to [`context`](Self::context) tokens.
    ///
    /// # Errors
    /// Those of the backend.
    fn logits(&mut self, window: &[u32]) -> Result<Vec<f32>, Error>;
}

/// Evaluates the whole window for every token.
impl NextToken for Session {
    fn context(&self) -> usize {
        self.program().settings.seq
    }

    fn logits(&mut self, window: &[u32]) -> Result<Vec<f32>, Error> {
        let mut padded = window.to_vec();
        padded.resize(self.context().max(window.len()), 0);
        self.next_logits(&padded, window.len().saturating_sub(1))
    }
}

/// Continues `prompt` by `count` tokens and hands each to `each` as it is drawn; `each` returns
/// false to stop. The model sees the last tokens that fit into its context; an empty prompt starts
/// from token 10, the end of a line.
///
/// # Errors
/// [`Error::Setting`] as [`Sampling::validate`]; those of the backend.
pub fn generate(
    model: &mut dyn NextToken,
    prompt: &[u32],
    count: usize,
    sampling: Sampling,
    each: impl FnMut(u32) -> bool,
) -> Result<(), Error> {
    generate_shifting(model, prompt, count, 1, sampling, each)
}

/// [`generate`] with `shift` tokens forgotten at once where the text outgrows the context. With 1
/// the model always sees as much as it can; but a window that moves changes the position of every
/// token, so a cache is of no use then and each token costs a whole evaluation. With more, `shift`
/// tokens follow from the cache before the next evaluation, and see up to `shift - 1` tokens less.
///
/// # Errors
/// [`Error::Setting`] for a shift of 0 or of more than the context, and as [`generate`].
pub fn generate_shifting(
    model: &mut dyn NextToken,
    prompt: &[u32],
    count: usize,
    shift: usize,
    sampling: Sampling,
    mut each: impl FnMut(u32) -> bool,
) -> Result<(), Error> {
    sampling.validate()?;
    let context = model.context();
    if !(1..=context).contains(&shift) {
        return Err(Error::Setting {
            name: "--shift",
            given: shift.to_string(),
            expected: format!("1 to the context of {context} tokens"),
        });
    }
    let mut text = if prompt.is_empty() { vec![10] } else { prompt.to_vec() };
    // A prompt that is too long loses no more than it must.
    let mut start = text.len().saturating_sub(context);
    for index in 0..count as u64 {
        if text.len() - start > context {
            start += shift;
        }
        let logits = model.logits(&text[start..])?;
        let token = sampling.draw(&logits, index);
        text.push(token);
        if !each(token) {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [0.0, 3.0, f32::NAN, 2.0, -1.0];

    #[test]
    fn temperature_zero_takes_the_likeliest() {
        let sampling = Sampling { temperature: 0.0, top_k: 0, seed: 1 };
        assert!((0..50).all(|index| sampling.draw(&LOGITS, index) == 1));
    }

    #[test]
    fn top_k_limits_and_nothing_draws_nan() {
        let two = Sampling { temperature: 5.0, top_k: 2, seed: 1 };
        let drawn: std::collections::HashSet<u32> =
            (0..200).map(|i| two.draw(&LOGITS, i)).collect();
        assert_eq!(drawn, [1, 3].into());
        let all = Sampling { top_k: 0, ..two };
        assert!((0..500).all(|index| all.draw(&LOGITS, index) != 2));
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let sampling = Sampling { temperature: 1.0, top_k: 0, seed: 7 };
        let count = 20_000;
        let ones = (0..count).filter(|&index| sampling.draw(&LOGITS, index) == 1).count();
        let weights: Vec<f64> = [0.0f64, 3.0, 2.0, -1.0].map(f64::exp).into();
        let expected = weights[1] / weights.iter().sum::<f64>();
        assert!((ones as f64 / count as f64 - expected).abs() < 0.015);
    }

    /// Notes what it is shown; the next token is always 7.
    struct Windows(Vec<Vec<u32>>);

    impl NextToken for Windows {
        fn context(&self) -> usize {
            4
        }

        fn logits(&mut self, window: &[u32]) -> Result<Vec<f32>, Error> {
            self.0.push(window.to_vec());
            Ok((0..9).map(|token| f32::from(token == 7_u8)).collect())
        }
    }

    fn windows(shift: usize) -> Result<Vec<Vec<u32>>, Error> {
        let mut model = Windows(Vec::new());
        let sampling = Sampling { temperature: 0.0, top_k: 0, seed: 0 };
        generate_shifting(&mut model, &[1, 2, 3], 5, shift, sampling, |_| true)?;
        Ok(model.0)
    }

    #[test]
    fn a_full_window_slides_or_jumps() -> Result<(), Error> {
        let whole = [vec![1, 2, 3], vec![1, 2, 3, 7]];
        let slides = [vec![2, 3, 7, 7], vec![3, 7, 7, 7], vec![7, 7, 7, 7]];
        assert_eq!(windows(1)?, [&whole[..], &slides].concat());
        let jumps = [vec![3, 7, 7], vec![3, 7, 7, 7], vec![7, 7, 7]];
        assert_eq!(windows(2)?, [&whole[..], &jumps].concat());
        assert!(windows(0).is_err() && windows(5).is_err());
        Ok(())
    }

    #[test]
    fn no_sense_is_refused() {
        let sampling = Sampling { temperature: -1.0, top_k: 0, seed: 0 };
        assert!(sampling.validate().is_err());
        assert!(Sampling { temperature: f64::NAN, ..sampling }.validate().is_err());
    }
}
