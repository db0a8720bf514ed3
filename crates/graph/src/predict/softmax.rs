//! Statistics of softmax over normal logits.

use super::normal::grid;

/// `E[sum p^2]` of softmax over `n` independent normal logits of standard deviation `sigma`, for
/// each `n`: 1/n where they are all alike, 1 where one takes all.
///
/// With weights `w = e^(sigma z)` and `1/S^2 = int t e^(-t S) dt`,
/// `E[sum p^2] = n int t E[w^2 e^(-t w)] E[e^(-t w)]^(n-1) dt`, integrated over `ln t`.
pub(crate) fn participation(counts: &[usize], sigma: f64) -> Vec<f64> {
    let mut sums = vec![0.0; counts.len()];
    // A hot softmax is its largest logit.
    if sigma > 25.0 {
        return vec![1.0; counts.len()];
    }
    laplace(counts, sigma, |t, step, zeroth, second| {
        for (sum, &n) in sums.iter_mut().zip(counts) {
            *sum += step * t * t * n as f64 * second * zeroth.powi(n as i32 - 1);
        }
    });
    counts.iter().zip(sums).map(|(&n, sum)| sum.clamp(1.0 / n.max(1) as f64, 1.0)).collect()
}

/// `E[ln sum w]` over the same logits: `int (e^-t - E[e^(-t w)]^n)/t dt` (Frullani).
pub(crate) fn log_sum_exp(n: usize, sigma: f64) -> f64 {
    if sigma > 25.0 {
        return sigma * (2.0 * (n.max(1) as f64).ln()).sqrt();
    }
    let mut sum = 0.0;
    laplace(&[n], sigma, |t, step, zeroth, _| {
        sum += step * ((-t).exp() - zeroth.powi(n as i32));
    });
    sum
}

/// Visits `t` on a logarithmic grid with `E[e^(-t w)]` and `E[w^2 e^(-t w)]`.
fn laplace(counts: &[usize], sigma: f64, mut visit: impl FnMut(f64, f64, f64, f64)) {
    let most = counts.iter().copied().max().unwrap_or(1).max(1) as f64;
    // Beyond these ends the integrands are below 1e-12 of their peak.
    let low = -(most.ln() + 7.0 * sigma + 0.5 * sigma * sigma + 30.0);
    let high = 7.0 * sigma + 5.0;
    let step = (0.1 * sigma.max(1.0)).min(0.25);
    let count = ((high - low) / step).ceil() as usize;
    // Every eighth node of the grid: step 1/16, still far beyond what the result needs.
    let nodes: Vec<(f64, f64)> =
        grid().iter().step_by(8).map(|node| ((sigma * node.z).exp(), node.weight)).collect();
    let total: f64 = nodes.iter().map(|&(_, weight)| weight).sum();
    for index in 0..count {
        let t = (low + step * index as f64).exp();
        let (mut zeroth, mut second) = (0.0, 0.0);
        for &(w, weight) in &nodes {
            let e = weight * (-t * w).exp();
            zeroth += e;
            second += w * w * e;
        }
        visit(t, step, zeroth / total, second / total);
    }
}

/// Overlap `E[sum p p']` of two softmax rows over `n` keys whose logits have correlation `r`,
/// where one row's own is `participation`: exact at `r = 0` and `r = 1` and for small logits,
/// where it is `e^(r sigma^2)/n`.
pub(crate) fn overlap(n: f64, participation: f64, r: f64) -> f64 {
    (n * participation).max(1.0).powf(r.clamp(0.0, 1.0)) / n
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predict::normal::{POINTS, Sequence};

    /// The same by drawing rows of logits.
    fn drawn(n: usize, sigma: f64) -> (f64, f64) {
        let sequence = Sequence::new(n);
        let (mut squares, mut lse) = (0.0, 0.0);
        for row in 0..POINTS {
            let weights: Vec<f64> =
                (0..n).map(|key| (sigma * sequence.normal(row, key)).exp()).collect();
            let sum: f64 = weights.iter().sum();
            squares += weights.iter().map(|w| (w / sum).powi(2)).sum::<f64>();
            lse += sum.ln();
        }
        (squares / POINTS as f64, lse / POINTS as f64)
    }

    #[test]
    fn participation_is_that_of_drawn_rows() {
        for (n, sigma) in [(1, 1.0), (8, 0.0), (8, 0.3), (8, 1.0), (8, 3.0), (3, 2.0)] {
            let (squares, lse) = drawn(n, sigma);
            let found = participation(&[n], sigma)[0];
            assert!((found / squares - 1.0).abs() < 0.03, "{n} {sigma}: {found} not {squares}");
            let found = log_sum_exp(n, sigma);
            assert!((found - lse).abs() < 0.03, "{n} {sigma}: {found} not {lse}");
        }
    }

    #[test]
    fn small_logits_spread_evenly_and_large_ones_do_not() {
        let near = participation(&[1000], 0.5)[0] * 1000.0;
        assert!((near / 0.25f64.exp() - 1.0).abs() < 0.01, "{near}");
        assert!(participation(&[100], 24.0)[0] > 0.8);
        assert_eq!(participation(&[100], 1e3), [1.0]);
    }
}
