//! The normal distribution on fixed grids, and a low-discrepancy sequence.

use crate::special::erf;
use std::f64::consts::{FRAC_1_SQRT_2, PI};
use std::sync::OnceLock;

/// Points of [`grid`] and of [`quantiles`].
pub(crate) const POINTS: usize = 2048;
/// Where [`grid`] ends: the mass beyond is below 1e-15.
const END: f64 = 8.0;

/// Density.
pub(crate) fn density(z: f64) -> f64 {
    (-0.5 * z * z).exp() / (2.0 * PI).sqrt()
}

/// Probability below `z`.
pub(crate) fn below(z: f64) -> f64 {
    0.5 * (1.0 + erf(z * FRAC_1_SQRT_2))
}

/// Probability above `z`, without cancellation for large `z`.
pub(crate) fn above(z: f64) -> f64 {
    if z < 5.0 {
        return below(-z);
    }
    // Mills' ratio as a continued fraction (Abramowitz and Stegun 26.2.14).
    let mut fraction = z;
    for n in (1..=60).rev() {
        fraction = z + f64::from(n) / fraction;
    }
    density(z) / fraction
}

/// A node of a quadrature.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Node {
    pub z: f64,
    pub weight: f64,
    /// Probability below `z`.
    pub below: f64,
}

/// Nodes and weights of expectations under the normal distribution: the trapezoidal rule, whose
/// error for smooth functions falls faster than any power of the step, and which is good to 1e-3
/// for functions with kinks and steps, where Gauss-Hermite nodes are far apart.
pub(crate) fn grid() -> &'static [Node] {
    static GRID: OnceLock<Vec<Node>> = OnceLock::new();
    GRID.get_or_init(|| {
        let step = 2.0 * END / (POINTS - 1) as f64;
        let nodes: Vec<Node> = (0..POINTS)
            .map(|index| {
                let z = -END + step * index as f64;
                Node { z, weight: density(z) * step, below: below(z) }
            })
            .collect();
        let total: f64 = nodes.iter().map(|node| node.weight).sum();
        nodes.into_iter().map(|node| Node { weight: node.weight / total, ..node }).collect()
    })
}

/// Normal quantiles of the probabilities `(index + 1/2) / POINTS`.
pub(crate) fn quantiles() -> &'static [f64] {
    static QUANTILES: OnceLock<Vec<f64>> = OnceLock::new();
    QUANTILES.get_or_init(|| {
        (0..POINTS).map(|index| quantile((index as f64 + 0.5) / POINTS as f64)).collect()
    })
}

/// The number with this probability below it, by bisection: slow, as exact as [`below`].
pub(crate) fn quantile(probability: f64) -> f64 {
    let (mut low, mut high) = (-END, END);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if below(middle) < probability { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// Points that fill the unit cube of any dimension evenly: multiples of powers of the generalised
/// golden ratio (M. Roberts, "The unreasonable effectiveness of quasirandom sequences", 2018).
#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    steps: Vec<f64>,
}

impl Sequence {
    pub(crate) fn new(dimensions: usize) -> Self {
        // The root of x^(d+1) = x + 1 by its contracting iteration.
        let mut ratio = 1.5f64;
        for _ in 0..64 {
            ratio = (1.0 + ratio).powf(1.0 / (dimensions as f64 + 1.0));
        }
        Self { steps: (1..=dimensions).map(|axis| ratio.powi(-(axis as i32))).collect() }
    }

    /// Coordinate of a point, in `[0, 1)`.
    pub(crate) fn at(&self, point: usize, axis: usize) -> f64 {
        (0.5 + self.steps[axis] * (point + 1) as f64).fract()
    }

    /// The same as a normal number.
    pub(crate) fn normal(&self, point: usize, axis: usize) -> f64 {
        quantiles()[(self.at(point, axis) * POINTS as f64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_and_quantiles_are_those_of_the_tables() {
        assert!((above(1.959_963_984_540_054) - 0.025).abs() < 1e-15);
        // Abramowitz and Stegun, table 26.2: Q(8).
        assert!((above(8.0) / 6.220_960_574_271_8e-16 - 1.0).abs() < 1e-12);
        assert!((quantile(0.975) - 1.959_963_984_540_054).abs() < 1e-12);
    }

    #[test]
    fn the_grid_integrates_moments_and_kinks() {
        let mean = |f: fn(f64) -> f64| grid().iter().map(|n| n.weight * f(n.z)).sum::<f64>();
        assert!((mean(|z| z.powi(4)) - 3.0).abs() < 1e-10);
        assert!((mean(|z| z.max(0.0).powi(2)) - 0.5).abs() < 1e-5);
        assert!((mean(|z| f64::from(u8::from(z > 0.3))) - above(0.3)).abs() < 2e-3);
    }

    #[test]
    fn the_sequence_fills_the_cube() {
        let sequence = Sequence::new(3);
        for axis in 0..3 {
            let mut boxes = [0; 8];
            for point in 0..4096 {
                boxes[(sequence.at(point, axis) * 8.0) as usize] += 1;
            }
            assert!(boxes.iter().all(|&count| (500..=524).contains(&count)), "{boxes:?}");
        }
    }
}
