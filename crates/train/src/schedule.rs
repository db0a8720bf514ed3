//! Learning-rate schedules: pure functions of the step.

use serde::{Deserialize, Serialize};

use crate::Error;

/// The curve after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// Stays at the peak.
    Constant,
    /// A straight line from the peak to the final value.
    Linear,
    /// Half a cosine from the peak to the final value (arXiv 1608.03983, equation 5, one cycle).
    Cosine,
}

impl Decay {
    /// The names that [`Decay::from_name`] knows.
    pub const NAMES: [&'static str; 3] = ["constant", "linear", "cosine"];

    /// The decay called `name`.
    ///
    /// # Errors
    /// [`Error::Unknown`] for a name outside [`Decay::NAMES`].
    pub fn from_name(name: &str) -> Result<Self, Error> {
        match name {
            "constant" => Ok(Self::Constant),
            "linear" => Ok(Self::Linear),
            "cosine" => Ok(Self::Cosine),
            _ => Err(Error::Unknown {
                kind: "schedule",
                given: name.into(),
                known: Self::NAMES.join(", "),
            }),
        }
    }
}

/// Linear warm-up to a peak, then a decay to a final value at the last step.
///
/// With `w` warm-up steps of `n` in all, peak `p` and final value `f = p · final_fraction`:
///
/// ```text
/// rate(s) = p (s + 1) / w                                 s < w
/// rate(s) = p                                             constant
/// rate(s) = p + (f - p) t                                 linear
/// rate(s) = f + (p - f) (1 + cos(π t)) / 2                cosine
///           t = (s - w) / (n - 1 - w), clamped to [0, 1]
/// ```
///
/// Steps count from 0, so the last step of a run, `n - 1`, has exactly the final value.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// The curve after the warm-up.
    pub decay: Decay,
    /// The highest learning rate.
    pub peak: f64,
    /// Final value as a fraction of the peak, `[0, 1]`.
    pub final_fraction: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// Steps of the whole run, warm-up included.
    pub total_steps: u64,
}

impl Schedule {
    /// Checks that the numbers make a schedule.
    ///
    /// # Errors
    /// [`Error::Setting`] for a rate that is not positive and finite, a final fraction outside
    /// `[0, 1]`, or a warm-up longer than the run.
    pub fn validate(&self) -> Result<(), Error> {
        let wrong = |name, given: String, expected: &str| {
            Err(Error::Setting { name, given, expected: expected.into() })
        };
        if !(self.peak.is_finite() && self.peak > 0.0) {
            return wrong("--lr", self.peak.to_string(), "a positive number");
        }
        if !(0.0..=1.0).contains(&self.final_fraction) {
            let given = self.final_fraction.to_string();
            return wrong("--final-lr-fraction", given, "a number from 0 to 1");
        }
        if self.warmup_steps > self.total_steps {
            let expected = format!("at most the {} steps of the run", self.total_steps);
            return wrong("--warmup", self.warmup_steps.to_string(), &expected);
        }
        Ok(())
    }

    /// The learning rate of `step`, counted from 0.
    pub fn rate(&self, step: u64) -> f32 {
        if step < self.warmup_steps {
            return (self.peak * (step + 1) as f64 / self.warmup_steps as f64) as f32;
        }
        let last = self.peak * self.final_fraction;
        let span = self.total_steps.saturating_sub(self.warmup_steps + 1);
        let t = match span {
            0 => 0.0,
            _ => ((step - self.warmup_steps) as f64 / span as f64).min(1.0),
        };
        let rate = match self.decay {
            Decay::Constant => self.peak,
            Decay::Linear => self.peak + (last - self.peak) * t,
            Decay::Cosine => {
                last + (self.peak - last) * 0.5 * (1.0 + (std::f64::consts::PI * t).cos())
            }
        };
        rate as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(decay: Decay) -> Schedule {
        Schedule { decay, peak: 0.5, final_fraction: 0.1, warmup_steps: 10, total_steps: 101 }
    }

    #[test]
    fn warm_up_is_linear_and_reaches_the_peak() {
        for decay in [Decay::Constant, Decay::Linear, Decay::Cosine] {
            let schedule = schedule(decay);
            assert_eq!(schedule.rate(0), 0.05);
            assert_eq!(schedule.rate(4), 0.25);
            assert_eq!(schedule.rate(9), 0.5);
            assert_eq!(schedule.rate(10), 0.5);
        }
    }

    #[test]
    fn the_last_step_has_the_final_value_and_later_ones_keep_it() {
        assert_eq!(schedule(Decay::Constant).rate(100), 0.5);
        for decay in [Decay::Linear, Decay::Cosine] {
            assert!((schedule(decay).rate(100) - 0.05).abs() < 1e-7);
            assert_eq!(schedule(decay).rate(5_000), schedule(decay).rate(100));
        }
    }

    #[test]
    fn halfway_both_decays_are_at_the_mean_of_the_ends() {
        for decay in [Decay::Linear, Decay::Cosine] {
            assert!((schedule(decay).rate(55) - 0.275).abs() < 1e-6);
        }
    }

    #[test]
    fn decays_never_rise() {
        for decay in [Decay::Constant, Decay::Linear, Decay::Cosine] {
            let schedule = schedule(decay);
            for step in 10..110 {
                assert!(schedule.rate(step + 1) <= schedule.rate(step), "{decay:?} {step}");
            }
        }
    }

    #[test]
    fn a_run_of_warm_up_only_or_of_one_step_has_no_division_by_zero() {
        let all = Schedule { total_steps: 10, ..schedule(Decay::Cosine) };
        assert_eq!(all.rate(9), 0.5);
        assert_eq!(all.rate(10), 0.5);
        let one = Schedule { total_steps: 1, warmup_steps: 0, ..schedule(Decay::Linear) };
        assert_eq!(one.rate(0), 0.5);
    }

    #[test]
    fn impossible_numbers_are_refused() {
        let good = schedule(Decay::Cosine);
        assert!(good.validate().is_ok());
        assert!(Schedule { peak: f64::NAN, ..good }.validate().is_err());
        assert!(Schedule { peak: 0.0, ..good }.validate().is_err());
        assert!(Schedule { final_fraction: 1.5, ..good }.validate().is_err());
        assert!(Schedule { warmup_steps: 102, ..good }.validate().is_err());
        assert!(Decay::from_name("exponential").is_err());
    }
}
