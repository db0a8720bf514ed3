//! `Reduce`: sum or maximum of an expression over some axes, in an order fixed by sizes.
//!
//! Where the innermost axis stays, a run of results is accumulated as a vector over the reduced
//! positions; where it goes, each result sums its own run. Either way the reduced positions are
//! cut into blocks of a fixed size whose partial results are combined in order, in f64 for sums.

use crate::expression::{CHUNK, Expression, Source, Space};
use crate::math::{max_of, sum_over};
use crate::parallel::{Scratch, Shared, for_each_task};
use crate::tensor::SharedOutput;

/// How elements are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Combine {
    Sum,
    /// NaN if any element is.
    Max,
}

/// A reduction with its axes split: results over `kept`, elements of each over `reduced`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Reduction {
    pub(crate) kept: Space,
    pub(crate) reduced: Space,
    pub(crate) combine: Combine,
    /// The innermost axis is kept.
    pub(crate) by_vectors: bool,
    /// Compiled for the space that is walked in chunks: `kept` if `by_vectors`, else `reduced`.
    pub(crate) expression: Expression,
}

/// Reduced elements in one partial result.
const BLOCK: usize = 32 * 1024;
/// Reduced positions in one partial result of the vector form.
const VECTOR_BLOCK: usize = 128;

impl Combine {
    fn of(self, values: &[f32]) -> f32 {
        match self {
            Self::Sum => sum_over([values], |[x]| x),
            Self::Max if values.iter().any(|x| x.is_nan()) => f32::NAN,
            Self::Max => max_of(values),
        }
    }

    fn start(self) -> f32 {
        match self {
            Self::Sum => 0.0,
            Self::Max => f32::NEG_INFINITY,
        }
    }

    fn pair(self, x: f32, y: f32) -> f32 {
        match self {
            Self::Sum => x + y,
            Self::Max => {
                if x > y || x.is_nan() {
                    x
                } else {
                    y
                }
            }
        }
    }

    /// Partial results in order, in f64 for sums.
    fn all(self, partial: impl Iterator<Item = f32>) -> f32 {
        match self {
            Self::Sum => partial.map(f64::from).sum::<f64>() as f32,
            Self::Max => partial.fold(self.start(), |x, y| self.pair(x, y)),
        }
    }
}

impl Reduction {
    /// `out[kept] = alpha · combine over reduced of the expression`.
    pub(crate) fn run(&self, sources: &[Source<'_>], alpha: f32, out: SharedOutput<'_>) {
        if self.kept.len() == 0 {
            return;
        }
        if self.by_vectors {
            self.run_vectors(sources, alpha, out);
        } else {
            self.run_inner(sources, alpha, out);
        }
    }

    fn run_inner(&self, sources: &[Source<'_>], alpha: f32, out: SharedOutput<'_>) {
        let (results, len) = (self.kept.len(), self.reduced.len());
        let blocks = len.div_ceil(BLOCK).max(1);
        let per_task = (BLOCK / len.max(1)).clamp(1, CHUNK);
        let mut partial = Scratch::<f32>::new(results * blocks);
        let shared = Shared::new(&mut partial);
        for_each_task(results.div_ceil(per_task) * blocks, |task| {
            let (group, block) = (task / blocks, task % blocks);
            let mut registers = self.expression.registers();
            let mut bases = Scratch::<usize>::new(sources.len());
            for result in group * per_task..results.min((group + 1) * per_task) {
                bases.fill(0);
                self.kept.offsets(result, &mut bases);
                let uniforms = self.expression.uniforms(sources, &bases, None);
                let end = len.min((block + 1) * BLOCK);
                let parts = (block * BLOCK..end).step_by(CHUNK).map(|start| {
                    let count = (end - start).min(CHUNK);
                    let values = self.expression.eval(
                        &self.reduced,
                        sources,
                        &bases,
                        &uniforms,
                        None,
                        start,
                        count,
                        &mut registers,
                    );
                    self.combine.of(values)
                });
                let value = self.combine.all(parts);
                // SAFETY: every (result, block) belongs to one task.
                let out = unsafe { shared.slice(result * blocks + block, 1) };
                out[0] = value;
            }
        });
        self.finish(&partial, blocks, 1, alpha, out);
    }

    fn run_vectors(&self, sources: &[Source<'_>], alpha: f32, out: SharedOutput<'_>) {
        let (results, len) = (self.kept.len(), self.reduced.len());
        let blocks = len.div_ceil(VECTOR_BLOCK).max(1);
        let chunks = results.div_ceil(CHUNK);
        let mut partial = Scratch::<f32>::new(results * blocks);
        let shared = Shared::new(&mut partial);
        for_each_task(chunks * blocks, |task| {
            let (chunk, block) = (task / blocks, task % blocks);
            let start = chunk * CHUNK;
            let count = (results - start).min(CHUNK);
            let mut registers = self.expression.registers();
            let mut bases = Scratch::<usize>::new(sources.len());
            // SAFETY: every (block, chunk) belongs to one task.
            let sums = unsafe { shared.slice(block * results + start, count) };
            sums.fill(self.combine.start());
            for position in block * VECTOR_BLOCK..len.min((block + 1) * VECTOR_BLOCK) {
                bases.fill(0);
                self.reduced.offsets(position, &mut bases);
                let uniforms = self.expression.uniforms(sources, &bases, None);
                let values = self.expression.eval(
                    &self.kept,
                    sources,
                    &bases,
                    &uniforms,
                    None,
                    start,
                    count,
                    &mut registers,
                );
                match self.combine {
                    Combine::Sum => sums.iter_mut().zip(values).for_each(|(sum, x)| *sum += *x),
                    Combine::Max => {
                        for (max, x) in sums.iter_mut().zip(values) {
                            *max = self.combine.pair(*max, *x);
                        }
                    }
                }
            }
        });
        self.finish(&partial, blocks, results, alpha, out);
    }

    /// Combines partial results: block `b` of result `r` lies at `r · blocks + b` where `stride`
    /// is 1, else at `b · stride + r`.
    fn finish(
        &self,
        partial: &[f32],
        blocks: usize,
        stride: usize,
        alpha: f32,
        out: SharedOutput<'_>,
    ) {
        let results = self.kept.len();
        for_each_task(results.div_ceil(BLOCK), |task| {
            let mut values = [0.0_f32; CHUNK];
            let end = results.min((task + 1) * BLOCK);
            for start in (task * BLOCK..end).step_by(CHUNK) {
                let count = (end - start).min(CHUNK);
                for (i, value) in values[..count].iter_mut().enumerate() {
                    let result = start + i;
                    let parts = (0..blocks).map(|block| match stride {
                        1 => partial[result * blocks + block],
                        _ => partial[block * stride + result],
                    });
                    *value = alpha * self.combine.all(parts);
                }
                // SAFETY: tasks write disjoint ranges.
                unsafe { out.encode(start, &values[..count]) };
            }
        });
    }
}
