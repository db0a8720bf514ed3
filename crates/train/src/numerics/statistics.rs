//! Statistics of one tensor and of what formats make of it.

use onesigma_format::{
    Conversion, Format, Noise, Statistics, decode_slice, encode_slice_with_statistics,
};
use serde::{Deserialize, Serialize};

use crate::Result;

/// Elements that are looked at together, so that they stay in the cache.
const PART: usize = 4096;
/// Exponent of the bin that holds the subnormal numbers of F32.
const LOWEST_EXPONENT: i32 = -127;

/// How many elements have which exponent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    /// Exponent of the first bin.
    pub first: i32,
    /// `counts[i]` elements have `2^(first + i) <= |x| < 2^(first + i + 1)`. The bin of exponent
    /// -127 holds everything below 2^-126. Neither end is empty; zeros and non-finite elements are
    /// in no bin.
    pub counts: Vec<u64>,
}

impl Histogram {
    fn trimmed(counts: &[u64; 256]) -> Self {
        let Some(low) = counts.iter().position(|&count| count > 0) else { return Self::default() };
        let high = counts.iter().rposition(|&count| count > 0).unwrap_or(low);
        Self { first: low as i32 + LOWEST_EXPONENT, counts: counts[low..=high].to_vec() }
    }

    /// Exponent and count of every bin.
    pub fn bins(&self) -> impl Iterator<Item = (i32, u64)> + '_ {
        (self.first..).zip(self.counts.iter().copied())
    }
}

/// What one format makes of a tensor, rounding as its conversion says.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FormatStatistics {
    /// The format.
    pub format: Format,
    /// Elements other than zero that become zero.
    pub underflow: u64,
    /// Elements whose magnitude is larger than the format's largest.
    pub overflow: u64,
    /// Elements that become subnormal numbers of the format.
    pub subnormal: u64,
    /// Signal to rounding noise in decibels: `10 log10(sum x^2 / sum (x - q(x))^2)` over the
    /// finite elements, overflow saturating. `None` if nothing is lost, or nothing is there.
    pub snr_db: Option<f64>,
}

/// Statistics of one tensor before it is rounded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorStatistics {
    /// Elements.
    pub count: u64,
    /// Elements that are exactly zero.
    pub zeros: u64,
    /// Infinities and NaNs; in no other figure.
    pub not_finite: u64,
    /// Mean of the finite elements.
    pub mean: f64,
    /// Root mean square of the finite elements.
    pub rms: f64,
    /// Largest magnitude of the finite elements.
    pub max_abs: f64,
    /// Smallest magnitude above zero; 0 if there is none.
    pub min_abs: f64,
    /// Exponents of the finite elements that are not zero.
    pub histogram: Histogram,
    /// What the tensor's own format makes of it.
    pub own: FormatStatistics,
    /// What each candidate makes of it, rounding to nearest even, saturating.
    pub formats: Vec<FormatStatistics>,
}

impl TensorStatistics {
    /// Statistics of one slice.
    ///
    /// # Errors
    /// As [`Collector::new`].
    pub fn of(values: &[f32], own: (Format, Conversion), formats: &[Format]) -> Result<Self> {
        let mut collector = Collector::new(own, formats);
        collector.add(values)?;
        Ok(collector.finish())
    }

    /// Standard deviation of the finite elements.
    pub fn sigma(&self) -> f64 {
        (self.rms * self.rms - self.mean * self.mean).max(0.0).sqrt()
    }
}

/// Collects [`TensorStatistics`] slice by slice; the result does not depend on how a tensor is cut
/// up to the rounding of f64 sums.
#[derive(Clone, Debug)]
pub struct Collector {
    count: u64,
    zeros: u64,
    not_finite: u64,
    sum: f64,
    squares: f64,
    max_abs: f32,
    min_abs: f32,
    exponents: Box<[u64; 256]>,
    formats: Vec<Losses>,
}

/// Running losses of one format; the first of the list is the tensor's own.
#[derive(Clone, Debug)]
struct Losses {
    format: Format,
    conversion: Conversion,
    statistics: Statistics,
    subnormal: u64,
    noise: f64,
}

impl Losses {
    fn new(format: Format, conversion: Conversion) -> Self {
        Self { format, conversion, statistics: Statistics::default(), subnormal: 0, noise: 0.0 }
    }

    fn add(&mut self, values: &[f32], offset: u64, buffers: &mut Buffers) -> Result<()> {
        let noise = Noise { offset, ..Noise::default() };
        let codes = &mut buffers.codes[..values.len() * self.format.bytes()];
        let statistics =
            encode_slice_with_statistics(self.format, self.conversion, noise, values, codes)?;
        self.statistics = self.statistics.merge(statistics);
        if self.format.is_f32() {
            return Ok(());
        }
        let back = &mut buffers.back[..values.len()];
        decode_slice(self.format, codes, back)?;
        let smallest = self.format.min_normal() as f32;
        let largest = self.format.max() as f32;
        for (&x, &y) in values.iter().zip(&*back) {
            self.subnormal += u64::from(y != 0.0 && y.abs() < smallest);
            if x.is_finite() {
                // An infinity or NaN of the format stands for its largest value here.
                let y = if y.is_finite() { y } else { largest.copysign(x) };
                let error = f64::from(x) - f64::from(y);
                self.noise += error * error;
            }
        }
        Ok(())
    }

    fn finish(&self, squares: f64) -> FormatStatistics {
        let lost = self.noise > 0.0 && squares > 0.0;
        FormatStatistics {
            format: self.format,
            underflow: self.statistics.underflow,
            overflow: self.statistics.overflow,
            subnormal: self.subnormal,
            snr_db: lost.then(|| 10.0 * (squares / self.noise).log10()),
        }
    }
}

struct Buffers {
    codes: Vec<u8>,
    back: Vec<f32>,
}

impl Collector {
    /// For a tensor whose own format and conversion are `own`, and candidates.
    pub fn new(own: (Format, Conversion), formats: &[Format]) -> Self {
        let candidates = formats.iter().map(|&format| Losses::new(format, Conversion::SATURATE));
        Self {
            count: 0,
            zeros: 0,
            not_finite: 0,
            sum: 0.0,
            squares: 0.0,
            max_abs: 0.0,
            min_abs: f32::INFINITY,
            exponents: Box::new([0; 256]),
            formats: std::iter::once(Losses::new(own.0, own.1)).chain(candidates).collect(),
        }
    }

    /// Adds the next elements.
    ///
    /// # Errors
    /// [`Error::Format`](crate::Error::Format) for a stochastic conversion with a number of random
    /// bits that there is not.
    pub fn add(&mut self, values: &[f32]) -> Result<()> {
        let mut buffers = Buffers { codes: vec![0; PART * 4], back: vec![0.0; PART] };
        for part in values.chunks(PART) {
            let (mut sum, mut squares) = (0.0, 0.0);
            for &value in part {
                let bits = value.to_bits() & 0x7fff_ffff;
                let exponent = (bits >> 23) as usize;
                if exponent == 255 {
                    self.not_finite += 1;
                    continue;
                }
                if bits == 0 {
                    self.zeros += 1;
                    continue;
                }
                self.exponents[exponent] += 1;
                let magnitude = f32::from_bits(bits);
                self.max_abs = self.max_abs.max(magnitude);
                self.min_abs = self.min_abs.min(magnitude);
                sum += f64::from(value);
                squares += f64::from(value) * f64::from(value);
            }
            self.sum += sum;
            self.squares += squares;
            for losses in &mut self.formats {
                losses.add(part, self.count, &mut buffers)?;
            }
            self.count += part.len() as u64;
        }
        Ok(())
    }

    /// The statistics of all elements so far.
    pub fn finish(&self) -> TensorStatistics {
        let finite = (self.count - self.not_finite).max(1) as f64;
        let (own, formats) = match self.formats.split_first() {
            Some((own, rest)) => (own, rest),
            None => unreachable!("the own format is always there"),
        };
        TensorStatistics {
            count: self.count,
            zeros: self.zeros,
            not_finite: self.not_finite,
            mean: self.sum / finite,
            rms: (self.squares / finite).sqrt(),
            max_abs: self.max_abs.into(),
            min_abs: if self.min_abs.is_finite() { self.min_abs.into() } else { 0.0 },
            histogram: Histogram::trimmed(&self.exponents),
            own: own.finish(self.squares),
            formats: formats.iter().map(|losses| losses.finish(self.squares)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[f32], format: Format) -> TensorStatistics {
        TensorStatistics::of(values, (format, Conversion::SATURATE), &[format, Format::F32])
            .expect("nearest even")
    }

    #[test]
    fn every_element_is_counted_once() {
        let values = [0.0, -0.0, 1.0, -1.5, 3.0, 2f32.powi(-130), f32::INFINITY, f32::NAN];
        let found = of(&values, Format::F16);
        assert_eq!((found.count, found.zeros, found.not_finite), (8, 2, 2));
        assert_eq!(found.histogram.first, -127);
        let bins: Vec<_> = found.histogram.bins().filter(|&(_, count)| count > 0).collect();
        assert_eq!(bins, [(-127, 1), (0, 2), (1, 1)]);
        assert_eq!((found.max_abs, found.min_abs), (3.0, 2f64.powi(-130)));
        assert!((found.mean - 2.5 / 6.0).abs() < 1e-15);
        assert!((found.rms - ((1.0 + 2.25 + 9.0) / 6.0f64).sqrt()).abs() < 1e-15);
    }

    #[test]
    fn losses_are_those_of_the_format() {
        // E4M3: largest 448, smallest normal 2^-6, smallest 2^-9, so 2^-10 ties to zero.
        let values = [2f32.powi(-10), 2f32.powi(-9), 2f32.powi(-6), 448.0, 500.0, 1.0625, 0.0];
        let found = of(&values, Format::E4M3).own;
        assert_eq!((found.underflow, found.overflow, found.subnormal), (1, 1, 1));
        let noise = 2f64.powi(-20) + 52.0 * 52.0 + 0.0625 * 0.0625;
        let signal: f64 = values.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let expected = 10.0 * (signal / noise).log10();
        assert!((found.snr_db.expect("losses") - expected).abs() < 1e-9, "{found:?}");
    }

    #[test]
    fn f32_loses_nothing_and_slices_may_be_cut_anywhere() {
        let values: Vec<f32> = (1..10_000).map(|n| (n as f32).sin() * 1e-3).collect();
        let own = (Format::E5M2, Conversion::SATURATE);
        let whole = TensorStatistics::of(&values, own, &[Format::F32]).expect("nearest even");
        assert_eq!(whole.formats[0].snr_db, None);
        let mut parts = Collector::new(own, &[Format::F32]);
        for part in values.chunks(777) {
            parts.add(part).expect("nearest even");
        }
        let parts = parts.finish();
        assert_eq!(
            (parts.own.underflow, &parts.histogram),
            (whole.own.underflow, &whole.histogram)
        );
        assert!((parts.rms - whole.rms).abs() < 1e-12 * whole.rms);
    }

    #[test]
    fn uniform_values_have_the_noise_of_the_textbook() {
        // Uniform in [1, 2): one binade with 2^-m steps, whose rounding error is uniform, u^2/12.
        let values: Vec<f32> = (0..100_000).map(|n| 1.0 + n as f32 / 100_000.0).collect();
        let found = of(&values, Format::E4M3).own.snr_db.expect("losses");
        let expected = 10.0 * ((7.0 / 3.0) / ((1.0f64 / 8.0).powi(2) / 12.0)).log10();
        assert!((found - expected).abs() < 0.05, "{found} dB instead of {expected} dB");
    }
}
