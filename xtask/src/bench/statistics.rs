//! Medians, their spread, and whether two sets of samples differ.

/// The median; NaN of nothing.
pub fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => f64::NAN,
        (n, half) if n % 2 == 1 => sorted[half],
        (_, half) => (sorted[half - 1] + sorted[half]) / 2.0,
    }
}

/// Half the distance between the quartiles, as a share of the median.
pub fn spread(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share).round() as usize];
    if sorted.is_empty() { f64::NAN } else { (at(0.75) - at(0.25)) / 2.0 / median(samples) }
}

/// The 99 % interval of `median(new) / median(old)`, by resampling both 2000 times.
pub fn ratio_interval(old: &[f64], new: &[f64]) -> (f64, f64) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = |samples: &[f64]| -> f64 {
        let mut next = || {
            // xorshift64*: enough for resampling, and the same every time.
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize
        };
        median(&(0..samples.len()).map(|_| samples[next() % samples.len()]).collect::<Vec<_>>())
    };
    let mut ratios: Vec<f64> = (0..2000).map(|_| draw(new) / draw(old)).collect();
    ratios.sort_by(f64::total_cmp);
    (ratios[10], ratios[1989])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spreads() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(spread(&[1.0, 2.0, 3.0, 4.0, 5.0]), 1.0 / 3.0);
        assert!(median(&[]).is_nan() && spread(&[]).is_nan());
    }

    #[test]
    fn the_interval_of_a_ratio_covers_it_and_grows_with_noise() {
        let old: Vec<f64> = (0..15).map(|n| 100.0 + f64::from(n % 5)).collect();
        let new: Vec<f64> = old.iter().map(|x| x * 1.2).collect();
        let (low, high) = ratio_interval(&old, &new);
        assert!(low > 1.15 && high < 1.25, "{low} to {high}");
        let noisy: Vec<f64> = (0..15).map(|n| 100.0 + 10.0 * f64::from(n % 5)).collect();
        let (wide_low, wide_high) = ratio_interval(&noisy, &noisy);
        assert!(wide_low < 1.0 && wide_high > 1.0 && wide_high - wide_low > high - low);
    }
}
