//! Masked tokens: which are hidden, and by what (arXiv 1810.04805, section 3.1).
//!
//! A sequence is `[CLS] text [SEP]`, or `[CLS] first [SEP] second [SEP]` with the second half the
//! true continuation or, with probability 1/2, text from elsewhere. Of its text a fixed share is
//! predicted; of that 80 % is replaced by `[MASK]`, 10 % by a random token, and 10 % stays. All of
//! it is a function of seed and step by Philox.

use std::sync::Arc;

use onesigma_format::{Noise, philox};

use super::predictions;
use crate::Error;
use crate::batch::{Batch, EvaluationBatches, Sampler, Sweep, TrainingBatches};
use crate::tokenizer::Special;

/// Random streams: of training and of evaluation.
const STREAMS: [u32; 2] = [0x6d61_736b, 0x6d61_736c];
/// Bounds of a 32-bit word below which a predicted token is masked, or replaced at random.
const MASKED: u32 = (0.8 * 4_294_967_296.0) as u32;
const REPLACED: u32 = (0.9 * 4_294_967_296.0) as u32;

/// How sequences are made and masked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Masking {
    /// Tokens of one sequence, with what BERT adds.
    pub seq: usize,
    /// Share of the text that is predicted.
    pub probability: f64,
    /// Number of token ids: random tokens are below it.
    pub vocabulary: u32,
    /// The tokens that BERT adds.
    pub special: Special,
    /// Whether a sequence is a pair.
    pub pairs: bool,
    /// Seed of order, masks and pairs.
    pub seed: u64,
}

/// A sequence before it is masked.
struct Sequence {
    tokens: Vec<u32>,
    segments: Vec<u32>,
    /// 0 if the second half follows the first.
    follows: u32,
}

impl Masking {
    /// Tokens of text in a sequence.
    fn text(&self) -> usize {
        self.seq.saturating_sub(if self.pairs { 3 } else { 2 })
    }

    fn check(&self) -> Result<(), Error> {
        let least = if self.pairs { 5 } else { 3 };
        if self.seq < least {
            let expected = format!("at least {least}: text between the tokens that BERT adds");
            return Err(Error::Setting { name: "--seq", given: self.seq.to_string(), expected });
        }
        if !(self.probability > 0.0 && self.probability <= 1.0) {
            return Err(Error::Setting {
                name: "mask_probability",
                given: self.probability.to_string(),
                expected: "a share above 0 and at most 1".into(),
            });
        }
        Ok(())
    }

    /// Batches of `batch` sequences over the tokens of a text.
    ///
    /// # Errors
    /// [`Error::DataTooShort`]; [`Error::Setting`].
    pub fn training(
        self,
        tokens: Arc<[u16]>,
        batch: usize,
    ) -> Result<MaskedBatches<Sampler>, Error> {
        self.check()?;
        let windows = Sampler::new(Arc::clone(&tokens), "training", batch, self.text(), self.seed)?;
        Ok(MaskedBatches { windows, tokens, masking: self, batch })
    }

    /// At most `batches` batches to measure on.
    ///
    /// # Errors
    /// As [`training`](Self::training).
    pub fn evaluation(
        self,
        tokens: Arc<[u16]>,
        batch: usize,
        batches: usize,
    ) -> Result<MaskedBatches<Sweep>, Error> {
        self.check()?;
        let windows = Sweep::new(Arc::clone(&tokens), "validation", batch, self.text(), batches)?;
        Ok(MaskedBatches { windows, tokens, masking: self, batch })
    }

    /// A sequence of a window of text. `draw` are two random words: whether the second half is
    /// from elsewhere, and from where.
    fn sequence(&self, window: &[u32], all: &[u16], draw: [u32; 2]) -> Sequence {
        let Special { start, end, .. } = self.special;
        let mut tokens = vec![start];
        if !self.pairs {
            tokens.extend(window);
            tokens.push(end);
            return Sequence { segments: vec![0; tokens.len()], tokens, follows: 0 };
        }
        let (first, second) = window.split_at(window.len() / 2);
        tokens.extend(first);
        tokens.push(end);
        let mut segments = vec![0; tokens.len()];
        let is_random = draw[0] % 2 == 1;
        if is_random {
            let places = (all.len() - second.len()) as u64 + 1;
            let from = ((u64::from(draw[1]) * places) >> 32) as usize;
            tokens.extend(all[from..from + second.len()].iter().map(|&id| u32::from(id)));
        } else {
            tokens.extend(second);
        }
        tokens.push(end);
        segments.resize(tokens.len(), 1);
        Sequence { tokens, segments, follows: u32::from(is_random) }
    }

    /// Masks the sequences of windows `[batch, text]`; `stream` and `step` name the random words.
    fn batch(&self, windows: Batch, all: &[u16], batch: usize, stream: u32) -> Batch {
        let count = predictions(self.seq, self.probability);
        let step = windows.step;
        let mut result = Batch { step, ..Batch::default() };
        let (mut rows, mut segments, mut follows) = (Vec::new(), Vec::new(), Vec::new());
        // For each sequence: two words for the pair, then an order, a choice and a token for each
        // position.
        let words_per_row = 2 + 3 * self.seq;
        let mut words = vec![0; words_per_row];
        for (row, window) in windows.inputs.chunks(self.text()).enumerate().take(batch) {
            let offset = (row * words_per_row) as u64;
            let noise = Noise { seed: self.seed, tensor: stream, step: step as u32, offset };
            philox::fill_u32(noise, &mut words);
            let (pair, rest) = words.split_at(2);
            let mut sequence = self.sequence(window, all, [pair[0], pair[1]]);
            let (order, rest) = rest.split_at(self.seq);
            let (choice, random) = rest.split_at(self.seq);
            let Special { start, end, .. } = self.special;
            let is_text = |&at: &usize| ![start, end].contains(&sequence.tokens[at]);
            let mut chosen: Vec<usize> = (0..self.seq).filter(is_text).collect();
            chosen.sort_by_key(|&at| (order[at], at));
            chosen.truncate(count);
            chosen.sort_unstable();
            for at in chosen {
                rows.push((row * self.seq + at) as u32);
                result.targets.push(sequence.tokens[at]);
                let token = &mut sequence.tokens[at];
                if choice[at] < MASKED {
                    *token = self.special.mask;
                } else if choice[at] < REPLACED {
                    let vocabulary = u64::from(self.vocabulary);
                    *token = ((u64::from(random[at]) * vocabulary) >> 32) as u32;
                }
            }
            // A text that holds the added tokens itself may leave fewer to choose from.
            let full = (row + 1) * count;
            rows.resize(full, u32::MAX);
            result.targets.resize(full, 0);
            result.inputs.extend(sequence.tokens);
            segments.extend(sequence.segments);
            follows.push(sequence.follows);
        }
        let counted = rows.iter().map(|&row| u32::from(row != u32::MAX)).collect();
        rows.iter_mut().filter(|row| **row == u32::MAX).for_each(|row| *row = 0);
        result.more = vec![rows, counted];
        if self.pairs {
            result.more.extend([segments, follows]);
        }
        result
    }
}

/// Masked sequences over windows of a text.
#[derive(Clone, Debug)]
pub struct MaskedBatches<W> {
    windows: W,
    tokens: Arc<[u16]>,
    masking: Masking,
    batch: usize,
}

impl TrainingBatches for MaskedBatches<Sampler> {
    fn batch(&mut self, step: u64) -> Batch {
        let windows = self.windows.batch(step);
        self.masking.batch(windows, &self.tokens, self.batch, STREAMS[0])
    }

    fn copy(&self) -> Box<dyn TrainingBatches> {
        Box::new(self.clone())
    }
}

impl EvaluationBatches for MaskedBatches<Sweep> {
    fn count(&self) -> usize {
        self.windows.len()
    }

    fn batch(&self, index: usize) -> Batch {
        let windows = self.windows.batch(index);
        self.masking.batch(windows, &self.tokens, self.batch, STREAMS[1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPECIAL: Special = Special { pad: 0, unknown: 1, start: 2, end: 3, mask: 4 };

    fn masking(pairs: bool) -> Masking {
        Masking { seq: 42, probability: 0.15, vocabulary: 500, special: SPECIAL, pairs, seed: 9 }
    }

    fn text() -> Arc<[u16]> {
        (0..5000_u32).map(|n| (100 + n * n % 397) as u16).collect()
    }

    #[test]
    fn a_share_is_predicted_and_eight_of_ten_are_masked() {
        let mut batches = masking(false).training(text(), 16).expect("long enough");
        let (mut masked, mut same, mut random, mut all) = (0, 0, 0, 0);
        for step in 0..50 {
            let batch = TrainingBatches::batch(&mut batches, step);
            assert_eq!(batch.inputs.len(), 16 * 42);
            let [rows, counted] = &batch.more[..] else { panic!("rows and counted") };
            assert_eq!((rows.len(), counted.len(), batch.targets.len()), (96, 96, 96));
            assert!(counted.iter().all(|&one| one == 1));
            for (n, (&row, &target)) in rows.iter().zip(&batch.targets).enumerate() {
                assert_eq!(row as usize / 42, n / 6, "six of each sequence");
                let at = row as usize % 42;
                assert!(at != 0 && at != 41, "the added tokens are not predicted");
                assert!((100..497).contains(&target), "the target is the text's token");
                let found = batch.inputs[row as usize];
                all += 1;
                match found {
                    4 => masked += 1,
                    token if token == target => same += 1,
                    token => {
                        assert!(token < 500);
                        random += 1;
                    }
                }
            }
            for sequence in batch.inputs.chunks(42) {
                assert_eq!((sequence[0], sequence[41]), (2, 3));
            }
        }
        let share = |n: i32| f64::from(n) / f64::from(all);
        // 4800 draws: three standard deviations are 0.017 and 0.013.
        assert!((share(masked) - 0.8).abs() < 0.018, "{masked} of {all}");
        assert!((share(same) - 0.1).abs() < 0.014, "{same} of {all}");
        assert!((share(random) - 0.1).abs() < 0.014, "{random} of {all}");
    }

    #[test]
    fn what_is_not_predicted_stays() {
        let mut batches = masking(false).training(text(), 4).expect("long enough");
        let batch = TrainingBatches::batch(&mut batches, 3);
        let mut windows = Sampler::new(text(), "training", 4, 40, 9).expect("long enough");
        let plain = windows.batch(3).inputs;
        let rows = &batch.more[0];
        for (n, window) in plain.chunks(40).enumerate() {
            for (t, &token) in window.iter().enumerate() {
                let at = n * 42 + 1 + t;
                if !rows.contains(&(at as u32)) {
                    assert_eq!(batch.inputs[at], token);
                }
            }
        }
        for (&row, &target) in rows.iter().zip(&batch.targets) {
            assert_eq!(plain[row as usize / 42 * 40 + row as usize % 42 - 1], target);
        }
    }

    #[test]
    fn batches_are_a_function_of_seed_and_step() {
        let mut batches = masking(true).training(text(), 4).expect("long enough");
        let later = TrainingBatches::batch(&mut batches, 7);
        assert_ne!(TrainingBatches::batch(&mut batches, 6), later);
        let mut copy = batches.copy();
        assert_eq!(copy.batch(7), later);
        let other = Masking { seed: 10, ..masking(true) };
        let mut other = other.training(text(), 4).expect("long enough");
        assert_ne!(TrainingBatches::batch(&mut other, 7), later);
    }

    #[test]
    fn half_of_the_pairs_follow() {
        let mut batches = masking(true).training(text(), 16).expect("long enough");
        let mut random = 0;
        for step in 0..40 {
            let batch = TrainingBatches::batch(&mut batches, step);
            let [_, _, segments, follows] = &batch.more[..] else { panic!("four inputs") };
            assert_eq!((segments.len(), follows.len()), (16 * 42, 16));
            for (sequence, segments) in batch.inputs.chunks(42).zip(segments.chunks(42)) {
                assert_eq!((sequence[0], sequence[20], sequence[41]), (2, 3, 3));
                assert_eq!((segments[20], segments[21]), (0, 1));
            }
            random += follows.iter().sum::<u32>();
        }
        assert!((260..380).contains(&random), "{random} of 640");
    }

    #[test]
    fn an_evaluation_is_the_same_each_time() {
        let batches = masking(false).evaluation(text(), 4, 5).expect("long enough");
        assert_eq!(batches.count(), 5);
        assert_eq!(EvaluationBatches::batch(&batches, 2), EvaluationBatches::batch(&batches, 2));
    }

    #[test]
    fn settings_without_text_are_refused() {
        assert!(Masking { seq: 2, ..masking(false) }.training(text(), 4).is_err());
        assert!(Masking { probability: 0.0, ..masking(false) }.training(text(), 4).is_err());
        let short: Arc<[u16]> = (0..30).collect();
        assert!(matches!(
            masking(false).training(short, 4),
            Err(Error::DataTooShort { split: "training", .. })
        ));
    }
}
