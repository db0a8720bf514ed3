//! How the elements of a tensor are distributed around their mean.

use super::normal::{Node, POINTS, Sequence, quantiles};
use std::sync::Arc;

/// The distribution of a tensor's elements, up to shift and scale.
#[derive(Clone, PartialEq, Debug, Default)]
pub enum Law {
    /// Normal: what sums of many independent terms have.
    #[default]
    Normal,
    /// Weighted points.
    Points(Arc<Points>),
}

/// Weighted points in ascending order, with mean 0 and variance 1.
#[derive(Clone, PartialEq, Debug)]
pub struct Points {
    values: Vec<f64>,
    weights: Vec<f64>,
    /// Probability below each point, half of its own weight included.
    below: Vec<f64>,
}

impl Law {
    /// The law of equally likely values; normal if they are all alike.
    pub(crate) fn of_values(values: Vec<f64>) -> Self {
        let weight = 1.0 / values.len().max(1) as f64;
        Self::of_points(values.into_iter().map(|value| (value, weight)).collect())
    }

    /// The law of values with probabilities.
    pub(crate) fn of_points(mut points: Vec<(f64, f64)>) -> Self {
        points.retain(|&(value, weight)| value.is_finite() && weight > 0.0);
        let total: f64 = points.iter().map(|&(_, weight)| weight).sum();
        let mean = points.iter().map(|&(x, w)| x * w).sum::<f64>() / total;
        let square = points.iter().map(|&(x, w)| w * (x - mean) * (x - mean)).sum::<f64>() / total;
        let sigma = square.sqrt();
        let is_constant = sigma.is_nan() || sigma <= 1e-12 * mean.abs();
        if is_constant {
            return Self::Normal;
        }
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut law = Points { values: Vec::new(), weights: Vec::new(), below: Vec::new() };
        let mut below = 0.0;
        for (value, weight) in points {
            let weight = weight / total;
            law.values.push((value - mean) / sigma);
            law.weights.push(weight);
            law.below.push(below + 0.5 * weight);
            below += weight;
        }
        Self::Points(Arc::new(law))
    }

    /// Normal numbers whose standard deviations differ: `(probability, deviation)`.
    pub(crate) fn of_deviations(deviations: &[(f64, f64)]) -> Self {
        let total: f64 = deviations.iter().map(|&(weight, _)| weight).sum();
        let mut ends = Vec::with_capacity(deviations.len());
        let mut end = 0.0;
        for &(weight, _) in deviations {
            end += weight / total;
            ends.push(end);
        }
        let sequence = Sequence::new(2);
        let values = (0..POINTS)
            .map(|point| {
                let u = sequence.at(point, 0);
                let at = ends.partition_point(|&end| end < u).min(deviations.len() - 1);
                deviations[at].1 * sequence.normal(point, 1)
            })
            .collect();
        Self::of_values(values)
    }

    /// Parts with their probability, mean and standard deviation.
    pub(crate) fn mixture(parts: &[(f64, f64, f64, &Self)]) -> Self {
        let mut points = Vec::new();
        for &(probability, mean, sigma, law) in parts {
            match law {
                _ if sigma <= 0.0 => points.push((mean, probability)),
                Self::Normal => points.extend(
                    quantiles().iter().map(|z| (mean + sigma * z, probability / POINTS as f64)),
                ),
                Self::Points(law) => points.extend(
                    law.values
                        .iter()
                        .zip(&law.weights)
                        .map(|(x, w)| (mean + sigma * x, probability * w)),
                ),
            }
        }
        // Not needed beyond this resolution, and mixtures of mixtures must not grow.
        if points.len() > 4 * POINTS {
            let whole = Self::of_points(points);
            let sorted: Vec<f64> =
                (0..POINTS).map(|i| whole.at((i as f64 + 0.5) / POINTS as f64)).collect();
            return Self::of_values(sorted);
        }
        Self::of_points(points)
    }

    /// The value with this probability below it, of mean 0 and variance 1.
    fn at(&self, probability: f64) -> f64 {
        match self {
            Self::Normal => {
                let last = POINTS - 1;
                quantiles()[((probability * POINTS as f64) as usize).min(last)]
            }
            Self::Points(law) => law.at(probability),
        }
    }

    /// The value that a node of the normal grid stands for.
    pub(crate) fn at_node(&self, node: &Node) -> f64 {
        match self {
            Self::Normal => node.z,
            Self::Points(law) => law.at(node.below),
        }
    }

    /// The value that a normal number `z` with probability `below` below it stands for.
    pub(crate) fn at_normal(&self, z: f64) -> f64 {
        match self {
            Self::Normal => z,
            Self::Points(law) => law.at(super::normal::below(z)),
        }
    }

    /// Points and weights; `None` for the normal law.
    pub(crate) fn points(&self) -> Option<impl Iterator<Item = (f64, f64)> + '_> {
        match self {
            Self::Normal => None,
            Self::Points(law) => Some(law.values.iter().copied().zip(law.weights.iter().copied())),
        }
    }
}

impl Points {
    fn at(&self, probability: f64) -> f64 {
        let next = self.below.partition_point(|&below| below < probability);
        let Some(previous) = next.checked_sub(1) else { return self.values[0] };
        let Some(&high) = self.values.get(next) else { return self.values[previous] };
        let low = self.values[previous];
        let (from, to) = (self.below[previous], self.below[next]);
        low + (high - low) * (probability - from) / (to - from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_standardised_and_keep_their_order() {
        let law = Law::of_points(vec![(5.0, 0.25), (1.0, 0.75)]);
        // Mean 2, variance 3.
        assert!((law.at(0.9) - 3.0 / 3f64.sqrt()).abs() < 1e-12);
        assert!((law.at(0.1) + 1.0 / 3f64.sqrt()).abs() < 1e-12);
        assert_eq!(Law::of_values(vec![2.0; 7]), Law::Normal);
    }

    #[test]
    fn a_mixture_of_deviations_has_heavy_tails() {
        let law = Law::of_deviations(&[(0.5, 1.0), (0.5, 3.0)]);
        let fourth: f64 = law.points().expect("points").map(|(x, w)| w * x.powi(4)).sum();
        // 3 (1 + 81)/2 / 5^2 = 4.92.
        assert!((fourth - 4.92).abs() < 0.15, "{fourth}");
    }
}
