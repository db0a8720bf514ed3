//! Second moments of pairs of elements, and what structural ops make of them.

use super::law::Law;
use crate::{Shape, SlotId};

/// A set of axes: bit `a` for axis `a`, and [`TOKEN`].
pub type Axes = usize;

/// Stands in a set of axes for "the tokens at the two positions differ". Without it they are
/// equal.
pub const TOKEN: Axes = 1 << 16;

/// Tensors of more axes are not predicted: their table of pairs would be large.
pub(crate) const MAX_RANK: usize = 8;

/// The axes of a tensor that go along the positions of a text.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Tokens {
    /// The axes.
    pub axes: Axes,
    /// The slot that holds the text.
    pub source: SlotId,
    /// Probability that the tokens at two positions are equal.
    pub collision: f64,
}

impl Tokens {
    /// Mean of `f` over whether two positions that differ in `axes` hold equal tokens.
    pub(crate) fn mean(tokens: Option<Self>, axes: Axes, f: impl Fn(Axes) -> f64) -> f64 {
        let same = axes & !TOKEN;
        match tokens {
            Some(tokens) if tokens.axes & axes != 0 => {
                tokens.collision * f(same) + (1.0 - tokens.collision) * f(same | TOKEN)
            }
            _ => f(same),
        }
    }

    /// The same on other axes; `None` if there are none left.
    pub(crate) fn on(self, axes: Axes) -> Option<Self> {
        (axes != 0).then_some(Self { axes, ..self })
    }

    /// Tokens of two operands on common axes. If their texts differ, the one with more to tell.
    pub(crate) fn joined(a: Option<Self>, b: Option<Self>) -> Option<Self> {
        match (a, b) {
            (Some(a), Some(b)) if a.source == b.source => Some(Self { axes: a.axes | b.axes, ..a }),
            (Some(a), Some(b)) => Some(if a.collision <= b.collision { a } else { b }),
            (one, other) => one.or(other),
        }
    }
}

/// What is expected of a tensor's elements: mean, law, and for each set of axes the second moment
/// `E[x x']` of two elements whose indices differ in exactly these axes. With no axis it is the
/// mean square.
///
/// `pair({batch, position})` against `pair({})` says how alike the rows of an activation are, and
/// with it how much of a sum over rows survives: this is the covariance map of mean-field theory
/// (Poole et al., arXiv 1606.05340; Schoenholz et al., arXiv 1611.01232) for every axis. Along the
/// positions of a text it tells equal tokens from different ones ([`TOKEN`]), since what two
/// tensors share there, they share at the same pairs of positions.
#[derive(Clone, PartialEq, Debug)]
pub struct Moments {
    dims: Vec<usize>,
    mean: f64,
    /// By axes, then the same with [`TOKEN`].
    pairs: Vec<f64>,
    law: Law,
    tokens: Option<Tokens>,
}

impl Moments {
    /// Moments from a function of the axes that differ; [`TOKEN`] is only asked for with axes of
    /// `tokens`. `None` for too many axes.
    pub(crate) fn new(
        dims: &[usize],
        mean: f64,
        law: Law,
        tokens: Option<Tokens>,
        mut pair: impl FnMut(Axes) -> f64,
    ) -> Option<Self> {
        if dims.len() > MAX_RANK {
            return None;
        }
        let real = real_axes(dims);
        let count = 1usize << dims.len();
        let mut pairs = vec![0.0; 2 * count];
        for axes in 0..count {
            // An axis of one element has no pairs.
            if axes & real != axes {
                pairs[axes] = pairs[axes & real];
                pairs[axes + count] = pairs[(axes & real) + count];
                continue;
            }
            pairs[axes] = pair(axes);
            let by_token = tokens.is_some_and(|tokens| tokens.axes & axes != 0);
            pairs[axes + count] = if by_token { pair(axes | TOKEN) } else { pairs[axes] };
        }
        // A correlation lies between -1 and 1.
        let square = pairs[0].max(0.0);
        for pair in &mut pairs {
            *pair = pair.clamp(-square, square);
        }
        Some(Self { dims: dims.to_vec(), mean, pairs, law, tokens })
    }

    /// Independent elements.
    pub(crate) fn independent(shape: &Shape, mean: f64, sigma: f64, law: Law) -> Option<Self> {
        let mean_square = mean * mean;
        Self::new(shape.dims(), mean, law, None, |axes| {
            mean_square + if axes == 0 { sigma * sigma } else { 0.0 }
        })
    }

    /// One repeated number.
    pub fn constant(shape: &Shape, value: f64) -> Option<Self> {
        Self::independent(shape, value, 0.0, Law::Normal)
    }

    /// Independent normal elements.
    pub fn normal(shape: &Shape, mean: f64, sigma: f64) -> Option<Self> {
        Self::independent(shape, mean, sigma, Law::Normal)
    }

    /// Extents.
    pub(crate) fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Mean of the elements.
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// Root mean square of the elements.
    pub fn rms(&self) -> f64 {
        self.pairs[0].max(0.0).sqrt()
    }

    /// Standard deviation of the elements.
    pub fn sigma(&self) -> f64 {
        (self.pairs[0] - self.mean * self.mean).max(0.0).sqrt()
    }

    /// `E[x x']` of two elements whose indices differ in exactly these axes. With [`TOKEN`] the
    /// tokens at their positions differ, without it they are equal.
    pub fn pair(&self, axes: Axes) -> f64 {
        let count = self.pairs.len() / 2;
        self.pairs[(axes & (count - 1)) + if axes & TOKEN != 0 { count } else { 0 }]
    }

    /// The same for any tokens.
    pub fn mean_pair(&self, axes: Axes) -> f64 {
        Tokens::mean(self.tokens, axes, |axes| self.pair(axes))
    }

    /// The same where [`TOKEN`] speaks of the text of `tokens`, which may be another.
    pub(crate) fn pair_under(&self, tokens: Option<Tokens>, axes: Axes) -> f64 {
        let source = |tokens: Option<Tokens>| tokens.map(|tokens| tokens.source);
        if source(self.tokens) == source(tokens) { self.pair(axes) } else { self.mean_pair(axes) }
    }

    /// The axes along a text.
    pub(crate) fn tokens(&self) -> Option<Tokens> {
        self.tokens
    }

    /// The element that stands where a standard normal number `z`, with probability `below` below
    /// it, would stand.
    pub(crate) fn element(&self, z: f64, below: impl FnOnce() -> f64) -> f64 {
        match &self.law {
            Law::Normal => self.mean + self.sigma() * z,
            Law::Points(points) => self.rms() * points.at(below()),
        }
    }

    /// How the elements are distributed.
    pub fn law(&self) -> &Law {
        &self.law
    }

    /// Number of elements along an axis.
    pub(crate) fn extent(&self, axis: usize) -> f64 {
        self.dims[axis] as f64
    }

    /// `factor x`.
    pub(crate) fn scaled(mut self, factor: f64) -> Self {
        self.mean *= factor;
        for pair in &mut self.pairs {
            *pair *= factor * factor;
        }
        if factor < 0.0 {
            let turned = self.law.points().map(|points| points.map(|(x, w)| (-x, w)).collect());
            self.law = turned.map_or(Law::Normal, Law::of_points);
        }
        self
    }

    /// Axis `i` of the result is axis `axes[i]`.
    pub(crate) fn permuted(&self, axes: &[usize]) -> Option<Self> {
        let dims: Vec<usize> = axes.iter().map(|&axis| self.dims[axis]).collect();
        let tokens = self.tokens.and_then(|tokens| tokens.on(renamed(tokens.axes, axes)));
        let pair = |set| self.pair(translate(set, axes));
        Self::new(&dims, self.mean, self.law.clone(), tokens, pair)
    }

    /// The same elements in row-major order under another shape.
    pub(crate) fn reshaped(&self, shape: &Shape) -> Option<Self> {
        let groups = groups(&self.dims, shape.dims());
        let real = real_axes(&self.dims);
        // A group keeps its text if it holds nothing else.
        let is_text = |group: &&Group, text: Axes| {
            let own = group.old & real;
            own != 0 && own & text == own
        };
        let tokens = self.tokens.and_then(|tokens| {
            let kept: Vec<&Group> = groups.iter().filter(|g| is_text(g, tokens.axes)).collect();
            let old: Axes = kept.iter().fold(0, |all, group| all | group.old & real);
            let new: Axes = kept.iter().fold(0, |all, group| all | group.new);
            if old == tokens.axes & real { tokens.on(new) } else { None }
        });
        Self::new(shape.dims(), self.mean, self.law.clone(), tokens, |set| {
            self.regrouped(&groups, set, tokens.is_some())
        })
    }

    /// Mean of the pairs that differ as `set` says in the new axes of `groups`.
    fn regrouped(&self, groups: &[Group], set: Axes, by_token: bool) -> f64 {
        let mut choices: Vec<(Axes, f64)> = vec![(set & TOKEN, 1.0)];
        for group in groups {
            if set & group.new == 0 {
                continue;
            }
            // Pairs of different indices of the group, by which of the old axes differ.
            let old: Vec<usize> = bits(group.old).collect();
            let total: f64 = old.iter().map(|&axis| self.extent(axis)).product::<f64>() - 1.0;
            let mut parts: Vec<(Axes, f64)> = subsets(group.old)
                .filter(|&part| part != 0)
                .map(|part| (part, self.pairs_of(part) / total))
                .collect();
            if parts.is_empty() || total < 0.5 {
                parts = vec![(0, 1.0)];
            }
            choices = choices
                .iter()
                .flat_map(|&(axes, weight)| {
                    parts.iter().map(move |&(part, share)| (axes | part, weight * share))
                })
                .collect();
        }
        let pair = |axes| if by_token { self.pair(axes) } else { self.mean_pair(axes) };
        choices.iter().map(|&(axes, weight)| weight * pair(axes)).sum()
    }

    /// How many indices differ from a given one in exactly these axes.
    fn pairs_of(&self, axes: Axes) -> f64 {
        bits(axes).map(|axis| self.extent(axis) - 1.0).product()
    }

    /// Sum over `axes`, which vanish, or stay with size 1.
    pub(crate) fn summed(&self, axes: &[usize], keep_dims: bool) -> Option<Self> {
        let reduced: Axes = axes.iter().map(|axis| 1 << axis).sum();
        let count: f64 = axes.iter().map(|&axis| self.extent(axis)).product();
        let kept: Vec<usize> =
            (0..self.dims.len()).filter(|axis| keep_dims || !axes.contains(axis)).collect();
        let dims: Vec<usize> = kept
            .iter()
            .map(|axis| if axes.contains(axis) { 1 } else { self.dims[*axis] })
            .collect();
        let law = if count < 2.0 { self.law.clone() } else { Law::Normal };
        let tokens = self.tokens.filter(|tokens| tokens.axes & reduced == 0);
        let tokens = tokens.and_then(|tokens| tokens.on(renamed(tokens.axes, &kept)));
        Self::new(&dims, self.mean * count, law, tokens, |set| {
            let set = translate(set, &kept) & !reduced;
            let pair = |axes| if tokens.is_some() { self.pair(axes) } else { self.mean_pair(axes) };
            subsets(reduced).map(|part| count * self.pairs_of(part) * pair(set | part)).sum()
        })
    }

    /// The axes along a text on a broadcast shape.
    pub(crate) fn broadcast_tokens(&self, dims: &[usize]) -> Option<Tokens> {
        let shift = dims.len() - self.dims.len();
        self.tokens.and_then(|tokens| tokens.on((tokens.axes & real_axes(&self.dims)) << shift))
    }

    /// Pairs on a broadcast shape, under its `tokens`: axes that the tensor lacks or has with
    /// size 1 never differ.
    pub(crate) fn broadcast_pair(&self, dims: &[usize], tokens: Option<Tokens>, axes: Axes) -> f64 {
        let own = ((axes & (TOKEN - 1)) >> (dims.len() - self.dims.len())) & real_axes(&self.dims);
        self.pair_under(tokens, own | axes & TOKEN)
    }
}

/// The axes that have more than one index.
fn real_axes(dims: &[usize]) -> Axes {
    dims.iter().enumerate().filter(|&(_, &dim)| dim > 1).map(|(axis, _)| 1 << axis).sum()
}

/// The axes of a set, without [`TOKEN`].
pub(crate) fn bits(axes: Axes) -> impl Iterator<Item = usize> {
    (0..MAX_RANK).filter(move |axis| axes >> axis & 1 == 1)
}

/// All subsets, the empty one first.
pub(crate) fn subsets(axes: Axes) -> impl Iterator<Item = Axes> {
    let mut next = Some(0);
    std::iter::from_fn(move || {
        let now: Axes = next?;
        next = (now != axes).then(|| (now | !axes).wrapping_add(1) & axes);
        Some(now)
    })
}

/// The set with axis `i` renamed to `to[i]`.
fn translate(axes: Axes, to: &[usize]) -> Axes {
    bits(axes).map(|axis| 1 << to[axis]).sum::<Axes>() | axes & TOKEN
}

/// The set with axis `from[i]` renamed to `i`; others go.
fn renamed(axes: Axes, from: &[usize]) -> Axes {
    (0..from.len()).filter(|&axis| axes >> from[axis] & 1 == 1).map(|axis| 1 << axis).sum()
}

/// Old and new axes of a reshape with the same number of elements, as few as possible.
struct Group {
    old: Axes,
    new: Axes,
}

fn groups(old: &[usize], new: &[usize]) -> Vec<Group> {
    let mut groups = Vec::new();
    let (mut i, mut j) = (0, 0);
    while i < old.len() || j < new.len() {
        let mut group = Group { old: 0, new: 0 };
        let (mut left, mut right) = (1usize, 1usize);
        loop {
            let (from, to) = (old.get(i), new.get(j));
            if left <= right && from.is_some() {
                group.old |= 1 << i;
                left = left.saturating_mul(old[i]);
                i += 1;
            } else if to.is_some() {
                group.new |= 1 << j;
                right = right.saturating_mul(new[j]);
                j += 1;
            } else {
                break;
            }
            if left == right && left > 1 {
                break;
            }
        }
        groups.push(group);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Moments of actual numbers, by counting every pair.
    fn counted(dims: &[usize], values: &[f64]) -> Moments {
        let shape = Shape::from(dims.to_vec());
        let strides = shape.strides();
        let digits = |index: usize, axis: usize| index / strides[axis] % dims[axis];
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        Moments::new(dims, mean, Law::Normal, None, |axes| {
            let (mut sum, mut count) = (0.0, 0.0);
            for a in 0..values.len() {
                for b in 0..values.len() {
                    let differ: Axes = (0..dims.len())
                        .filter(|&x| digits(a, x) != digits(b, x))
                        .map(|x| 1 << x)
                        .sum();
                    if differ == axes {
                        sum += values[a] * values[b];
                        count += 1.0;
                    }
                }
            }
            if count > 0.0 { sum / count } else { 0.0 }
        })
        .expect("few axes")
    }

    fn numbers(count: usize) -> Vec<f64> {
        (0..count).map(|n| ((n * n + 3 * n) as f64 * 0.37).sin() + 0.2).collect()
    }

    #[track_caller]
    fn assert_close(a: &Moments, b: &Moments) {
        assert_eq!(a.dims, b.dims);
        assert!((a.mean - b.mean).abs() < 1e-12);
        for axes in 0..a.pairs.len() {
            assert!((a.pair(axes) - b.pair(axes)).abs() < 1e-12, "{axes:b}: {a:?} {b:?}");
        }
    }

    #[test]
    fn sums_permutations_and_merges_are_exact() {
        let x = numbers(2 * 3 * 4);
        let moments = counted(&[2, 3, 4], &x);
        let mut sums = vec![0.0; 8];
        for (index, value) in x.iter().enumerate() {
            sums[index / 12 * 4 + index % 4] += value;
        }
        assert_close(&moments.summed(&[1], false).expect("few axes"), &counted(&[2, 4], &sums));
        assert_close(&moments.reshaped(&[6, 4].into()).expect("few axes"), &counted(&[6, 4], &x));
        assert_close(
            &moments.reshaped(&[2, 1, 12].into()).expect("few axes"),
            &counted(&[2, 1, 12], &x),
        );
        let mut turned = vec![0.0; 24];
        for (index, value) in x.iter().enumerate() {
            turned[index % 4 * 6 + index / 4] = *value;
        }
        assert_close(
            &moments.permuted(&[2, 0, 1]).expect("few axes"),
            &counted(&[4, 2, 3], &turned),
        );
        let total = moments.summed(&[0, 1, 2], false).expect("few axes");
        assert!((total.rms() - x.iter().sum::<f64>().abs()).abs() < 1e-12);
    }

    #[test]
    fn a_split_and_its_merge_give_the_pairs_back() {
        let moments = counted(&[3, 8], &numbers(24));
        let split = moments.reshaped(&[3, 2, 4].into()).expect("few axes");
        assert_close(&split.reshaped(&[3, 8].into()).expect("few axes"), &moments);
    }

    #[test]
    fn subsets_are_complete() {
        assert_eq!(subsets(0b101).collect::<Vec<_>>(), [0, 1, 4, 5]);
        assert_eq!(subsets(0).collect::<Vec<_>>(), [0]);
    }
}
