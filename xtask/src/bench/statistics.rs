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

/// Samples of several starts of a program, one start after another, each as many.
#[derive(Clone, Copy, Debug)]
pub struct Samples<'a> {
    /// All of them.
    pub times: &'a [f64],
    /// Number of starts.
    pub launches: usize,
}

impl Samples<'_> {
    /// The median of as many samples drawn again: starts first, then samples within them, because
    /// where a process finds its memory shifts all of its times alike.
    fn redrawn(self, next: &mut impl FnMut() -> usize) -> f64 {
        let each = (self.times.len() / self.launches.max(1)).max(1);
        let launches: Vec<&[f64]> = self.times.chunks(each).collect();
        let mut drawn = Vec::with_capacity(self.times.len());
        for _ in &launches {
            let own = launches[next() % launches.len()];
            drawn.extend((0..own.len()).map(|_| own[next() % own.len()]));
        }
        median(&drawn)
    }
}

/// The 99 % interval of `median(new) / median(old)`, by resampling both 2000 times.
pub fn ratio_interval(old: Samples<'_>, new: Samples<'_>) -> (f64, f64) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        // xorshift64*: enough for resampling, and the same every time.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize
    };
    let mut ratios: Vec<f64> =
        (0..2000).map(|_| new.redrawn(&mut next) / old.redrawn(&mut next)).collect();
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
        let of = |times| Samples { times, launches: 1 };
        let (low, high) = ratio_interval(of(&old), of(&new));
        assert!(low > 1.15 && high < 1.25, "{low} to {high}");
        let noisy: Vec<f64> = (0..15).map(|n| 100.0 + 10.0 * f64::from(n % 5)).collect();
        let (wide_low, wide_high) = ratio_interval(of(&noisy), of(&noisy));
        assert!(wide_low < 1.0 && wide_high > 1.0 && wide_high - wide_low > high - low);
    }

    #[test]
    fn what_starts_differ_by_is_noise() {
        // Each start is steady, and they lie a tenth apart.
        let start = |shift: f64| (0..5).map(move |n| shift + f64::from(n % 3) / 10.0);
        let of = |shifts: [f64; 3]| -> Vec<f64> { shifts.into_iter().flat_map(start).collect() };
        let (old, new) = (of([100.0, 100.0, 110.0]), of([110.0, 110.0, 100.0]));
        let interval = |launches| {
            let of = |times| Samples { times, launches };
            ratio_interval(of(&old), of(&new))
        };
        assert!(interval(3).0 < 1.0 && interval(3).1 > 1.09, "{:?}", interval(3));
        // A slowdown of every start is none.
        let slower = of([130.0, 130.0, 120.0]);
        let launches = 3;
        let (low, _) =
            ratio_interval(Samples { times: &old, launches }, Samples { times: &slower, launches });
        assert!(low > 1.08, "{low}");
    }
}
