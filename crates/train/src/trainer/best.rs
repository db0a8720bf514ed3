//! The lowest validation loss of a run, and how long ago it was.

use crate::telemetry::Record;

/// What the evaluations of a run say of its end.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Best {
    /// Step and loss of the lowest evaluation.
    pub(super) lowest: Option<(u64, f32)>,
    /// Evaluations since the loss last fell by enough.
    pub(super) waited: u64,
    /// The loss that the next one has to undercut.
    bar: Option<f32>,
}

impl Best {
    /// The state after the evaluations of a run that is continued.
    pub(super) fn of(records: &[Record], min_improvement: f64) -> Self {
        let mut best = Self::default();
        for record in records {
            if let Record::Evaluation { step, loss, .. } = *record {
                best.note(step, loss, min_improvement);
            }
        }
        best
    }

    /// Takes notice of an evaluation; whether it is the lowest so far.
    pub(super) fn note(&mut self, step: u64, loss: f32, min_improvement: f64) -> bool {
        // A loss that is no number is never lower.
        let is_lowest = !loss.is_nan() && self.lowest.is_none_or(|(_, lowest)| loss < lowest);
        if is_lowest {
            self.lowest = Some((step, loss));
        }
        let falls = !loss.is_nan()
            && self.bar.is_none_or(|bar| f64::from(loss) < f64::from(bar) - min_improvement);
        if falls {
            self.bar = Some(loss);
            self.waited = 0;
        } else {
            self.waited += 1;
        }
        is_lowest
    }

    /// Whether the run has waited long enough.
    pub(super) fn is_over(&self, patience: u64) -> bool {
        patience > 0 && self.waited >= patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_counts_evaluations_that_do_not_fall_by_enough() {
        let mut best = Best::default();
        let lowest: Vec<bool> = [3.0, 2.0, 1.95, f32::NAN, 1.9]
            .into_iter()
            .enumerate()
            .map(|(step, loss)| best.note(step as u64, loss, 0.5))
            .collect();
        assert_eq!(lowest, [true, true, true, false, true]);
        assert_eq!((best.lowest, best.waited), (Some((4, 1.9)), 3));
        assert!(best.is_over(3) && !best.is_over(4) && !best.is_over(0));
        // Slow but steady progress counts once it adds up.
        best.note(5, 1.45, 0.5);
        assert_eq!(best.waited, 0);
    }

    #[test]
    fn a_continued_run_remembers() {
        let evaluation = |step, loss| Record::Evaluation { step, loss, accuracy: None };
        let best = Best::of(&[evaluation(1, 2.0), evaluation(2, 2.5), evaluation(3, 2.0)], 0.0);
        assert_eq!((best.lowest, best.waited), (Some((1, 2.0)), 2));
    }
}
