//! How the elements of a tensor are distributed.

use super::Moments;
use super::normal::{POINTS, Sequence, quantiles};
use std::sync::Arc;

/// The distribution of a tensor's elements, up to their [`Moments`](super::Moments).
#[derive(Clone, PartialEq, Debug, Default)]
pub enum Law {
    /// Normal: what sums of many independent terms have.
    #[default]
    Normal,
    /// Weighted points.
    Points(Arc<Points>),
}

/// Weighted points in ascending order, in units of their root mean square.
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
        let rms = (points.iter().map(|&(x, w)| w * x * x).sum::<f64>() / total).sqrt();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let is_constant = points.first().map(|p| p.0) == points.last().map(|p| p.0);
        if is_constant {
            return Self::Normal;
        }
        let mut law = Points { values: Vec::new(), weights: Vec::new(), below: Vec::new() };
        let mut below = 0.0;
        for (value, weight) in points {
            let weight = weight / total;
            law.values.push(value / rms);
            law.weights.push(weight);
            law.below.push(below + 0.5 * weight);
            below += weight;
        }
        Self::Points(Arc::new(law))
    }

    /// Normal numbers whose standard deviations differ: `(probability, deviation)`.
    pub(crate) fn of_deviations(deviations: &[(f64, f64)]) -> Self {
        let deviations: Vec<_> = deviations.iter().filter(|&&(weight, _)| weight > 0.0).collect();
        let total: f64 = deviations.iter().map(|&(weight, _)| weight).sum();
        let mut ends = Vec::with_capacity(deviations.len());
        let mut end = 0.0;
        for (weight, _) in &deviations {
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

    /// Parts with their probabilities.
    pub(crate) fn mixture(parts: &[(f64, &Moments)]) -> Self {
        let mut points = Vec::new();
        for &(probability, part) in parts {
            match part.law().points() {
                None => points.extend(
                    quantiles()
                        .iter()
                        .map(|z| (part.mean() + part.sigma() * z, probability / POINTS as f64)),
                ),
                Some(law) => {
                    points.extend(law.map(|(x, w)| (part.rms() * x, probability * w)));
                }
            }
        }
        // Not needed beyond this resolution, and mixtures of mixtures must not grow.
        if points.len() > 4 * POINTS
            && let Self::Points(whole) = Self::of_points(points.clone())
        {
            let even = (0..POINTS).map(|i| whole.at((i as f64 + 0.5) / POINTS as f64));
            return Self::of_values(even.collect());
        }
        Self::of_points(points)
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
    /// The point with this probability below it, in units of the root mean square.
    pub(crate) fn at(&self, probability: f64) -> f64 {
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
    fn points_are_normalised_and_keep_their_zeros() {
        let Law::Points(law) = Law::of_points(vec![(6.0, 0.25), (0.0, 0.75)]) else {
            unreachable!("two points");
        };
        // Mean square 9.
        assert!((law.at(0.9) - 2.0).abs() < 1e-12);
        assert_eq!(law.at(0.1), 0.0);
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
