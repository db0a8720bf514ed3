//! Mean and spread of a few seeds.

use serde::Serialize;

/// Values of one point over its seeds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Number of seeds whose value is finite.
    pub count: usize,
    /// Number of seeds that have diverged: they count in nothing else.
    pub diverged: usize,
    /// Mean; none without a finite value.
    pub mean: Option<f64>,
    /// Sample standard deviation (divisor `count - 1`); none for fewer than two values.
    pub deviation: Option<f64>,
    /// Half the width of the mean's 95 % interval by Student's t; none for fewer than two.
    pub interval: Option<f64>,
}

impl Spread {
    /// Of values, where `None` is a run that has diverged.
    pub fn of(values: &[Option<f64>]) -> Self {
        let finite: Vec<f64> = values.iter().flatten().copied().collect();
        let count = finite.len();
        let mean = (count > 0).then(|| finite.iter().sum::<f64>() / count as f64);
        let deviation = mean.filter(|_| count > 1).map(|mean| {
            let squares: f64 = finite.iter().map(|value| (value - mean).powi(2)).sum();
            (squares / (count - 1) as f64).sqrt()
        });
        let interval = deviation.map(|s| student_t(count - 1) * s / (count as f64).sqrt());
        Self { count, diverged: values.len() - count, mean, deviation, interval }
    }

    /// `1.234 ± 0.005`, and how many have diverged.
    pub fn text(&self, digits: usize) -> String {
        let total = self.count + self.diverged;
        let diverged = match self.diverged {
            0 => String::new(),
            all if all == total => return "diverged".into(),
            some => format!(" ({some} of {total} diverged)"),
        };
        match (self.mean, self.deviation) {
            (Some(mean), Some(s)) => format!("{mean:.digits$} ± {s:.digits$}{diverged}"),
            (Some(mean), None) => format!("{mean:.digits$}{diverged}"),
            (None, _) => "—".into(),
        }
    }
}

/// Standard deviation of two groups together: the root of the mean of their variances, weighted
/// by degrees of freedom. Zero where neither has a spread.
pub fn pooled(a: &Spread, b: &Spread) -> f64 {
    let part = |s: &Spread| match s.deviation {
        Some(deviation) => ((s.count - 1) as f64, deviation.powi(2)),
        None => (0.0, 0.0),
    };
    let ((n, a), (m, b)) = (part(a), part(b));
    if n + m == 0.0 { 0.0 } else { ((n * a + m * b) / (n + m)).sqrt() }
}

/// 97.5 % quantile of Student's t with this many degrees of freedom; 1.96 beyond the table.
fn student_t(degrees: usize) -> f64 {
    const TABLE: [f64; 20] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
        2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    ];
    match degrees {
        0 => f64::INFINITY,
        _ => TABLE.get(degrees - 1).copied().unwrap_or(1.96),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_deviation_and_interval_of_three_seeds() {
        // Deviations -1, 0, 1: variance (1 + 0 + 1)/2 = 1; t(2) = 4.303, over the root of 3.
        let spread = Spread::of(&[Some(1.0), Some(2.0), Some(3.0)]);
        assert_eq!((spread.mean, spread.deviation), (Some(2.0), Some(1.0)));
        assert!((spread.interval.expect("three") - 4.303 / 3f64.sqrt()).abs() < 1e-12);
        assert_eq!(spread.text(2), "2.00 ± 1.00");
    }

    #[test]
    fn diverged_runs_are_told_and_not_averaged() {
        let spread = Spread::of(&[Some(1.0), None, Some(3.0)]);
        assert_eq!((spread.count, spread.diverged, spread.mean), (2, 1, Some(2.0)));
        assert!(spread.text(1).ends_with("(1 of 3 diverged)"));
        assert_eq!(Spread::of(&[None, None]).text(3), "diverged");
        assert_eq!(Spread::of(&[]).text(3), "—");
    }

    #[test]
    fn one_value_has_no_spread() {
        let spread = Spread::of(&[Some(1.5)]);
        assert_eq!((spread.deviation, spread.interval), (None, None));
        assert_eq!(pooled(&spread, &spread), 0.0);
    }

    #[test]
    fn pooling_weighs_by_degrees_of_freedom() {
        let a = Spread::of(&[Some(0.0), Some(2.0)]); // variance 2, 1 degree
        let b = Spread::of(&[Some(1.0), Some(1.0), Some(1.0)]); // variance 0, 2 degrees
        assert!((pooled(&a, &b) - (2.0f64 / 3.0).sqrt()).abs() < 1e-12);
    }
}
