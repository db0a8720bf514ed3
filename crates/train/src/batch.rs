//! Shuffled batches: a pure function of seed and step, so that resuming is exact.

use crate::Error;
use crate::tokens::Tokens;

/// Inputs and targets of one step. For a language model `targets[b, t]` is the token after
/// `inputs[b, t]`; see [`crate::task`] for the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The step that this batch belongs to, counted from 0.
    pub step: u64,
    /// Token ids, row-major `[batch, seq]`.
    pub inputs: Vec<u32>,
    /// What is to be predicted, in the shape that the model asks for.
    pub targets: Vec<u32>,
    /// Further inputs, in the order of [`Model::more_inputs`](crate::program::Model::more_inputs).
    pub more: Vec<Vec<u32>>,
}

/// Batches to train on: a pure function of the step.
pub trait TrainingBatches: Send + Sync + std::fmt::Debug {
    /// The batch of `step`. Steps may be asked in any order; in rising order it is cheap.
    fn batch(&mut self, step: u64) -> Batch;

    /// An independent copy, which gives the same batches.
    fn copy(&self) -> Box<dyn TrainingBatches>;
}

/// Batches to measure on, the same on every call.
pub trait EvaluationBatches: Send + Sync + std::fmt::Debug {
    /// How many there are, at least one.
    fn count(&self) -> usize;

    /// The `index`th batch.
    fn batch(&self, index: usize) -> Batch;
}

impl TrainingBatches for Sampler {
    fn batch(&mut self, step: u64) -> Batch {
        Self::batch(self, step)
    }

    fn copy(&self) -> Box<dyn TrainingBatches> {
        Box::new(self.clone())
    }
}

impl EvaluationBatches for Sweep {
    fn count(&self) -> usize {
        self.len()
    }

    fn batch(&self, index: usize) -> Batch {
        Self::batch(self, index)
    }
}

/// Cuts a text into windows of `seq` tokens and deals them out in shuffled epochs.
///
/// An epoch visits every window once, in an order drawn from `(seed, epoch)`; the windows' common
/// starting offset in `[0, seq)` is drawn as well, so that their edges fall elsewhere each time.
///
/// ```
/// use onesigma_train::batch::Sampler;
///
/// let tokens: Vec<u16> = (0..1000).collect();
/// let mut batches = Sampler::new(tokens, "training", 4, 16, 0)?;
/// let batch = batches.batch(7);
/// assert_eq!(batch.inputs.len(), 4 * 16);
/// // What follows each token; and a batch depends on seed and step alone.
/// assert!(batch.inputs.iter().zip(&batch.targets).all(|(token, next)| token + 1 == *next));
/// assert_eq!(batches.batch(7).inputs, batch.inputs);
/// # Ok::<(), onesigma_train::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Sampler {
    tokens: Tokens,
    batch: usize,
    seq: usize,
    seed: u64,
    epoch: Option<Epoch>,
}

/// The drawn order of one pass over the text.
#[derive(Clone, Debug)]
struct Epoch {
    index: u64,
    offset: usize,
    order: Vec<u32>,
}

impl Sampler {
    /// A sampler of `[batch, seq]` windows over `tokens`; `split` names them in errors.
    ///
    /// # Errors
    /// [`Error::DataTooShort`] if the text is shorter than one sequence and its last target;
    /// [`Error::Setting`] for a batch or sequence of zero.
    pub fn new(
        tokens: impl Into<Tokens>,
        split: &'static str,
        batch: usize,
        seq: usize,
        seed: u64,
    ) -> Result<Self, Error> {
        let tokens = tokens.into();
        check_shape(tokens.len(), split, batch, seq)?;
        Ok(Self { tokens, batch, seq, seed, epoch: None })
    }

    /// Windows in one epoch: one fewer fits when the drawn offset eats the slack at the end, so
    /// the count is that of the largest offset (at least one).
    pub fn windows(&self) -> usize {
        windows(self.tokens.len() - self.max_offset(), self.seq)
    }

    /// The largest starting offset: less than `seq`, and small enough to leave one window.
    fn max_offset(&self) -> usize {
        (self.seq - 1).min(self.tokens.len() - self.seq - 1)
    }

    /// The batch of `step`. Steps may be asked in any order; in rising order it is cheap.
    pub fn batch(&mut self, step: u64) -> Batch {
        let windows = self.windows() as u64;
        let mut inputs = Vec::with_capacity(self.batch * self.seq);
        let mut targets = Vec::with_capacity(self.batch * self.seq);
        for row in 0..self.batch as u64 {
            let position = step * self.batch as u64 + row;
            let (epoch, index) = (position / windows, position % windows);
            let start = self.window_start(epoch, index as usize);
            push_window(&self.tokens, start, self.seq, &mut inputs, &mut targets);
        }
        Batch { step, inputs, targets, more: Vec::new() }
    }

    /// First token of the `index`th window of `epoch`.
    fn window_start(&mut self, epoch: u64, index: usize) -> usize {
        let max_offset = self.max_offset();
        let windows = self.windows();
        let (seed, seq) = (self.seed, self.seq);
        let stale = self.epoch.as_ref().is_none_or(|current| current.index != epoch);
        if stale {
            self.epoch = None;
        }
        let drawn = self.epoch.get_or_insert_with(|| Epoch::draw(seed, epoch, windows, max_offset));
        drawn.offset + drawn.order[index] as usize * seq
    }
}

/// Deals out the numbers below `count` in shuffled epochs, each once an epoch.
#[derive(Clone, Debug)]
pub(crate) struct Deck {
    count: usize,
    seed: u64,
    epoch: Option<Epoch>,
}

impl Deck {
    /// A deck of at least one number.
    pub(crate) fn new(count: usize, seed: u64) -> Self {
        Self { count: count.max(1), seed, epoch: None }
    }

    /// The `position`th number dealt.
    pub(crate) fn card(&mut self, position: u64) -> usize {
        let (epoch, index) = (position / self.count as u64, position % self.count as u64);
        if self.epoch.as_ref().is_none_or(|current| current.index != epoch) {
            self.epoch = None;
        }
        let (seed, count) = (self.seed, self.count);
        let drawn = self.epoch.get_or_insert_with(|| Epoch::draw(seed, epoch, count, 0));
        drawn.order[index as usize] as usize
    }
}

impl Epoch {
    fn draw(seed: u64, index: u64, windows: usize, max_offset: usize) -> Self {
        let mut random = SplitMix64::new(seed, index);
        let offset = random.below(max_offset as u64 + 1) as usize;
        let mut order: Vec<u32> = (0..windows as u32).collect();
        // Fisher–Yates.
        for last in (1..order.len()).rev() {
            order.swap(last, random.below(last as u64 + 1) as usize);
        }
        Self { index, offset, order }
    }
}

/// Evenly spaced windows over a text, the same on every call: what an evaluation runs on.
#[derive(Clone, Debug)]
pub struct Sweep {
    tokens: Tokens,
    batch: usize,
    seq: usize,
    batches: usize,
}

impl Sweep {
    /// `batches` batches of `[batch, seq]` over `tokens`, or as many as fit without repeating a
    /// window if that is fewer (at least one; then windows repeat within the batch).
    ///
    /// # Errors
    /// As [`Sampler::new`].
    pub fn new(
        tokens: impl Into<Tokens>,
        split: &'static str,
        batch: usize,
        seq: usize,
        batches: usize,
    ) -> Result<Self, Error> {
        let tokens = tokens.into();
        check_shape(tokens.len(), split, batch, seq)?;
        let fit = (windows(tokens.len(), seq) / batch).max(1);
        Ok(Self { tokens, batch, seq, batches: batches.clamp(1, fit) })
    }

    /// How many batches the sweep has.
    pub fn len(&self) -> usize {
        self.batches
    }

    /// Always false: a sweep has at least one batch.
    pub fn is_empty(&self) -> bool {
        self.batches == 0
    }

    /// The `index`th batch.
    pub fn batch(&self, index: usize) -> Batch {
        let windows = windows(self.tokens.len(), self.seq);
        let total = self.batches * self.batch;
        let mut inputs = Vec::with_capacity(self.batch * self.seq);
        let mut targets = Vec::with_capacity(self.batch * self.seq);
        for row in 0..self.batch {
            let k = index * self.batch + row;
            let window = if total <= windows { k * windows / total } else { k % windows };
            push_window(&self.tokens, window * self.seq, self.seq, &mut inputs, &mut targets);
        }
        Batch { step: index as u64, inputs, targets, more: Vec::new() }
    }
}

/// Whole windows of `seq` tokens, each with a next token, in `tokens` tokens.
fn windows(tokens: usize, seq: usize) -> usize {
    (tokens - 1) / seq
}

fn push_window(
    tokens: &Tokens,
    start: usize,
    seq: usize,
    inputs: &mut Vec<u32>,
    targets: &mut Vec<u32>,
) {
    tokens.extend(start..start + seq, inputs);
    tokens.extend(start + 1..start + seq + 1, targets);
}

fn check_shape(tokens: usize, split: &'static str, batch: usize, seq: usize) -> Result<(), Error> {
    for (name, value) in [("--batch", batch), ("--seq", seq)] {
        if value == 0 {
            let expected = "at least 1".to_owned();
            return Err(Error::Setting { name, given: "0".into(), expected });
        }
    }
    if tokens <= seq {
        return Err(Error::DataTooShort { split, tokens, needed: seq.saturating_add(1) });
    }
    Ok(())
}

/// The SplitMix64 generator (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number
/// generators", figure 17): small, and good enough to shuffle.
pub(crate) struct SplitMix64(u64);

impl SplitMix64 {
    /// The generator of stream `stream` under `seed`.
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        let mut mixer = Self(seed);
        let base = mixer.next();
        let mut mixer = Self(base ^ stream);
        Self(mixer.next())
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `[0, bound)` by multiply and shift; the bias is below `bound / 2^64`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// A number in `[0, 1)` with 53 random bits.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use std::sync::Arc;

    use super::*;

    fn counting(count: u16) -> Arc<[u16]> {
        (0..count).collect()
    }

    fn sampler(count: u16, batch: usize, seq: usize, seed: u64) -> Sampler {
        Sampler::new(counting(count), "training", batch, seq, seed).expect("long enough")
    }

    #[test]
    fn targets_are_the_next_tokens() {
        let batch = sampler(1000, 4, 16, 1).batch(3);
        assert_eq!(batch.inputs.len(), 64);
        for (input, target) in batch.inputs.iter().zip(&batch.targets) {
            assert_eq!(input + 1, *target);
        }
    }

    #[test]
    fn a_batch_depends_on_seed_and_step_alone() {
        let mut forward = sampler(500, 3, 8, 7);
        let in_order: Vec<_> = (0..60).map(|step| forward.batch(step)).collect();
        let mut backward = sampler(500, 3, 8, 7);
        for step in (0..60).rev() {
            assert_eq!(backward.batch(step), in_order[step as usize]);
        }
        assert_ne!(sampler(500, 3, 8, 8).batch(0), in_order[0]);
    }

    #[test]
    fn an_epoch_visits_every_window_once_and_the_next_in_another_order() {
        let mut sampler = sampler(1000, 1, 10, 3);
        let windows = sampler.windows() as u64;
        let starts = |sampler: &mut Sampler, epoch: u64| -> Vec<u32> {
            (0..windows).map(|i| sampler.batch(epoch * windows + i).inputs[0]).collect()
        };
        let first = starts(&mut sampler, 0);
        let second = starts(&mut sampler, 1);
        assert_eq!(first.iter().collect::<HashSet<_>>().len(), windows as usize);
        assert_eq!(second.iter().collect::<HashSet<_>>().len(), windows as usize);
        assert_ne!(first, second);
        assert!(!first.is_sorted());
    }

    #[test]
    fn the_shortest_text_that_fits_one_sequence_works() {
        let mut sampler = sampler(9, 2, 8, 0);
        assert_eq!(sampler.windows(), 1);
        let batch = sampler.batch(5);
        assert_eq!(batch.inputs[..8], batch.inputs[8..]);
        let error = Sampler::new(counting(8), "training", 2, 8, 0).expect_err("too short");
        assert!(matches!(error, Error::DataTooShort { tokens: 8, needed: 9, .. }));
    }

    #[test]
    fn zero_shapes_are_refused() {
        assert!(Sampler::new(counting(100), "training", 0, 8, 0).is_err());
        assert!(Sweep::new(counting(100), "validation", 2, 0, 1).is_err());
    }

    #[test]
    fn a_sweep_is_fixed_spread_out_and_free_of_repeats() {
        let sweep = Sweep::new(counting(1001), "validation", 4, 10, 5).expect("long enough");
        assert_eq!(sweep.len(), 5);
        let starts: Vec<u32> =
            (0..5).flat_map(|i| sweep.batch(i).inputs.into_iter().step_by(10)).collect();
        assert_eq!(starts.iter().collect::<HashSet<_>>().len(), 20);
        assert_eq!(starts[0], 0);
        assert!(*starts.last().expect("twenty") >= 900);
        let all = Sweep::new(counting(1001), "validation", 4, 10, usize::MAX).expect("fits");
        assert_eq!(all.len(), 25);
    }

    #[test]
    fn below_stays_below_and_reaches_both_ends() {
        let mut random = SplitMix64::new(1, 2);
        let seen: HashSet<u64> = (0..1000).map(|_| random.below(7)).collect();
        assert_eq!(seen, (0..7).collect());
        assert!((0..1000).all(|_| (0.0..1.0).contains(&random.unit())));
    }
}
