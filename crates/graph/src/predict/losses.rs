//! What a format flushes, clips and rounds of elements with given moments.

use super::law::Law;
use super::moments::Moments;
use super::normal::{above, below, density};
use onesigma_format::{Conversion, Format, decode, encode};

/// Binades below the deviation that are still looked at one by one; what lies lower has less than
/// 2^-60 of the probability.
const BINADES: i32 = 60;

/// Expected losses of a tensor in a format, rounding to nearest even and saturating.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Losses {
    /// Share of the elements that are not zero and become zero.
    pub underflow: f64,
    /// Share of the elements beyond the largest number.
    pub overflow: f64,
    /// Share of the elements that become subnormal.
    pub subnormal: f64,
    /// Signal to rounding noise in decibels; `None` if nothing is lost, or nothing is there.
    pub snr_db: Option<f64>,
}

/// The expected losses of a tensor in a format.
///
/// Rounding errors within a binade are taken as uniform over one step of the format: the noise of
/// step `u` is `u^2/12`. Underflow, overflow and its noise are exact for the normal law.
pub fn losses(moments: &Moments, format: Format) -> Losses {
    if moments.rms() == 0.0 || format.is_f32() {
        return Losses::default();
    }
    let (mean, sigma) = (moments.mean(), moments.sigma());
    // What varies less than a step of the format is rounded as a constant.
    if sigma < 0.5 * format.epsilon() * mean.abs() {
        return of_points([(mean, 1.0)].into_iter(), format);
    }
    match moments.law() {
        Law::Normal => of_normal(mean, sigma, format),
        Law::Points(_) => {
            let points = moments.law().points().into_iter().flatten();
            of_points(points.map(|(x, weight)| (moments.rms() * x, weight)), format)
        }
    }
}

/// Expected shares of the elements by exponent: entry `i` is the share with
/// `2^(first + i) <= |x| < 2^(first + i + 1)`, for all exponents that hold more than a millionth.
/// Elements that are exactly zero are in none.
pub fn exponents(moments: &Moments) -> (i32, Vec<f64>) {
    let rms = moments.rms();
    if rms == 0.0 {
        return (0, Vec::new());
    }
    let top = rms.log2().ceil() as i32 + 8;
    let mut shares = vec![0.0; 48];
    let first = top - shares.len() as i32 + 1;
    match moments.law() {
        Law::Normal if moments.sigma() > 1e-6 * rms => {
            let x = Normal { mean: moments.mean(), sigma: moments.sigma() };
            for (exponent, share) in (first..).zip(&mut shares) {
                let from = f64::from(exponent).exp2();
                *share = x.mass(from, 2.0 * from);
            }
        }
        Law::Normal => {
            let exponent = moments.mean().abs().log2().floor() as i32;
            shares[(exponent - first).max(0) as usize] = 1.0;
        }
        law @ Law::Points(_) => {
            for (x, weight) in law.points().into_iter().flatten() {
                let exponent = (rms * x).abs().log2().floor();
                if exponent.is_finite() {
                    let at = (exponent as i32 - first).clamp(0, shares.len() as i32 - 1);
                    shares[at as usize] += weight;
                }
            }
        }
    }
    let kept = |share: &f64| *share > 1e-6;
    let low = shares.iter().position(kept).unwrap_or(0);
    let high = shares.iter().rposition(kept).unwrap_or(0);
    (first + low as i32, shares[low..=high].to_vec())
}

fn of_points(points: impl Iterator<Item = (f64, f64)>, format: Format) -> Losses {
    let mut losses = Losses::default();
    let (mut signal, mut noise) = (0.0, 0.0);
    for (x, weight) in points {
        let y = f64::from(decode(encode(x as f32, format, Conversion::SATURATE, 0), format));
        signal += weight * x * x;
        noise += weight * (x - y) * (x - y);
        losses.count(x.abs(), y.abs(), weight, format);
    }
    losses.snr_db = snr_db(signal, noise);
    losses
}

impl Losses {
    fn count(&mut self, x: f64, y: f64, weight: f64, format: Format) {
        if x > 0.0 && y == 0.0 {
            self.underflow += weight;
        }
        if x > format.max() {
            self.overflow += weight;
        }
        if y > 0.0 && y < format.min_normal() {
            self.subnormal += weight;
        }
    }
}

fn snr_db(signal: f64, noise: f64) -> Option<f64> {
    (noise > 0.0 && signal > 0.0).then(|| 10.0 * (signal / noise).log10())
}

/// A normal variable cut at magnitudes.
struct Normal {
    mean: f64,
    sigma: f64,
}

impl Normal {
    /// Probability of `from <= |x| < to`.
    fn mass(&self, from: f64, to: f64) -> f64 {
        let side = |mean: f64| {
            let (a, b) = ((from - mean) / self.sigma, (to - mean) / self.sigma);
            if a > 0.0 { above(a) - above(b) } else { below(b) - below(a) }
        };
        (side(self.mean) + side(-self.mean)).max(0.0)
    }

    /// `E[x^2]` over `|x| < to`.
    fn square_below(&self, to: f64) -> f64 {
        let (a, b) = ((-to - self.mean) / self.sigma, (to - self.mean) / self.sigma);
        let mass = below(b) - below(a);
        let (first, second) = (density(a) - density(b), mass + a * density(a) - b * density(b));
        let result = self.mean * self.mean * mass
            + 2.0 * self.mean * self.sigma * first
            + self.sigma * self.sigma * second;
        // Close to zero the density is flat, and the difference above cancels.
        if to < 1e-3 * self.sigma {
            return density(self.mean / self.sigma) / self.sigma * 2.0 * to.powi(3) / 3.0;
        }
        result.max(0.0)
    }

    /// `E[(|x| - from)^2]` over `|x| > from`.
    fn excess(&self, from: f64) -> f64 {
        let side = |mean: f64| {
            let a = (from - mean) / self.sigma;
            ((1.0 + a * a) * above(a) - a * density(a)).max(0.0) * self.sigma * self.sigma
        };
        side(self.mean) + side(-self.mean)
    }
}

fn of_normal(mean: f64, sigma: f64, format: Format) -> Losses {
    let x = Normal { mean, sigma };
    let (largest, normal, step) = (format.max(), format.min_normal(), format.min_subnormal());
    let flushed = 0.5 * step;
    let underflow = x.mass(0.0, flushed);
    // From half a step up to half a step below the smallest normal number.
    let subnormal = x.mass(flushed, (normal - flushed).max(flushed));
    let mut noise = x.square_below(flushed) + x.excess(largest);
    noise += x.mass(flushed, normal.max(flushed)) * step * step / 12.0;
    let top = (mean.abs() + 10.0 * sigma).min(largest).log2().ceil() as i32;
    let bottom = (normal.log2().round() as i32).max(sigma.log2().floor() as i32 - BINADES);
    for exponent in bottom..top {
        let (from, to) = (f64::from(exponent).exp2(), f64::from(exponent + 1).exp2().min(largest));
        let step = from * format.epsilon();
        noise += x.mass(from.max(normal), to) * step * step / 12.0;
    }
    Losses {
        underflow,
        overflow: x.mass(largest, f64::INFINITY),
        subnormal,
        snr_db: snr_db(mean * mean + sigma * sigma, noise),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Shape;
    use crate::predict::normal::{POINTS, quantiles};

    fn normal(mean: f64, sigma: f64) -> Moments {
        Moments::normal(&Shape::from([64]), mean, sigma).expect("one axis")
    }

    /// The same from points of the normal law that are encoded one by one.
    fn counted(mean: f64, sigma: f64, format: Format) -> Losses {
        let points = quantiles().iter().map(|z| (mean + sigma * z, 1.0 / POINTS as f64));
        of_points(points, format)
    }

    #[test]
    fn closed_forms_agree_with_the_codec() {
        for format in [Format::F16, Format::E5M2, Format::E4M3, Format::E2M1] {
            for sigma in [1.0, 0.01, 2f64.powi(-9), 2f64.powi(-22), 300.0, 1e5] {
                for mean in [0.0, 0.4 * sigma] {
                    let (a, b) =
                        (losses(&normal(mean, sigma), format), counted(mean, sigma, format));
                    let close = |a: f64, b: f64| (a - b).abs() < 3e-3 + 0.02 * b;
                    let name = format!("{format} {mean} {sigma}: {a:?} {b:?}");
                    assert!(close(a.underflow, b.underflow), "{name}");
                    assert!(close(a.overflow, b.overflow), "{name}");
                    assert!(close(a.subnormal, b.subnormal), "{name}");
                    let (a, b) = (a.snr_db.expect("losses"), b.snr_db.expect("losses"));
                    assert!((a - b).abs() < 0.6, "{name}");
                }
            }
        }
    }

    #[test]
    fn small_shares_are_exact() {
        // P(|z| < t) = 2 t density(0) for small t.
        let found = losses(&normal(0.0, 1.0), Format::F16).underflow;
        let expected = 2.0 * 2f64.powi(-25) * density(0.0);
        assert!((found / expected - 1.0).abs() < 1e-6, "{found} not {expected}");
        let found = losses(&normal(0.0, 56.0), Format::E4M3).overflow;
        assert!((found / (2.0 * above(8.0)) - 1.0).abs() < 1e-6, "{found}");
    }

    #[test]
    fn exponents_hold_everything() {
        for moments in [normal(0.0, 1.0), normal(3.0, 0.5), normal(-0.25, 0.0)] {
            let (first, shares) = exponents(&moments);
            assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-4, "{moments:?}");
            assert!(first > -25 && first + shares.len() as i32 <= 4, "{first} {}", shares.len());
        }
        let (first, shares) = exponents(&normal(0.0, 1.0));
        // P(1/2 <= |z| < 1) = 0.617075 - 0.317311.
        assert!((shares[(-1 - first) as usize] - 0.299_764).abs() < 1e-5);
        assert_eq!(exponents(&normal(-0.25, 0.0)), (-2, vec![1.0]));
    }

    #[test]
    fn constants_are_rounded_as_they_are() {
        let one = losses(&normal(1.0, 0.0), Format::E2M1);
        assert_eq!(one, Losses::default());
        assert_eq!(losses(&normal(1e-9, 0.0), Format::F16).underflow, 1.0);
        assert_eq!(losses(&normal(0.0, 0.0), Format::F16), Losses::default());
    }
}
