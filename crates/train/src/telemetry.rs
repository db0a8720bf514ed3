//! What a run tells about itself while it runs.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize};

pub mod tensorboard;

/// One line of `metrics.jsonl`.
///
/// Lines about training hold only what is a function of seed, data and configuration, so that the
/// file of a resumed run equals that of an uninterrupted one; times live in [`Record::Speed`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Record {
    /// One optimiser step.
    Train {
        /// The step, counted from 0.
        step: u64,
        /// Mean training loss over the step's batch, in nats per token.
        #[serde(deserialize_with = "float_or_null")]
        loss: f32,
        /// The learning rate of the step.
        rate: f32,
        /// Norm of the true gradient before it was clipped, where it is; none too where it is not
        /// finite.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        grad_norm: Option<f32>,
    },
    /// One evaluation on the validation split.
    Evaluation {
        /// Steps taken before it.
        step: u64,
        /// Mean validation loss in nats per token.
        #[serde(deserialize_with = "float_or_null")]
        loss: f32,
        /// Share of right predictions, if the task has one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        accuracy: Option<f64>,
    },
    /// Text that the model wrote.
    Sample {
        /// Steps taken before it.
        step: u64,
        /// Prompt and continuation.
        text: String,
    },
    /// Speed since the last such line; different on every run.
    Speed {
        /// Steps taken so far.
        step: u64,
        /// Tokens trained on per second.
        tokens_per_s: f64,
    },
}

/// JSON has no NaN and no infinity: they are written as null and read back as NaN.
pub(crate) fn float_or_null<'de, D: Deserializer<'de>>(source: D) -> Result<f32, D::Error> {
    Ok(Option::<f32>::deserialize(source)?.unwrap_or(f32::NAN))
}

impl Record {
    /// Steps that were complete when the line was written.
    pub fn steps_done(&self) -> u64 {
        match self {
            Self::Train { step, .. } => step + 1,
            Self::Evaluation { step, .. }
            | Self::Sample { step, .. }
            | Self::Speed { step, .. } => *step,
        }
    }
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum End {
    /// All steps are taken.
    Complete,
    /// The caller stopped it; it can be continued.
    Interrupted,
    /// The validation loss has not fallen for as many evaluations as the configuration allows.
    EarlyStop,
}

/// Something that happened during a run.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// Training is about to take its first step.
    Started {
        /// First step to take: above 0 after a resume.
        first_step: u64,
        /// Steps of the whole run.
        total_steps: u64,
        /// Tokens per step.
        tokens_per_step: u64,
    },
    /// A new line of metrics.
    Metric(Record),
    /// A checkpoint is on the disk.
    Saved {
        /// Steps taken before it.
        step: u64,
        /// Where it is.
        path: PathBuf,
    },
    /// Something is wrong that does not stop the run.
    Warning(String),
    /// The run is over.
    Finished {
        /// Steps taken, over all sittings.
        steps: u64,
        /// Why it ended.
        end: End,
    },
}

/// Listens to a run. Events come from the training thread, in order.
pub trait Observer {
    /// Takes notice of one event.
    fn event(&mut self, event: &Event);
}

/// Collects events: for tests and for callers that look afterwards.
impl Observer for Vec<Event> {
    fn event(&mut self, event: &Event) {
        self.push(event.clone());
    }
}

/// Tells each of several listeners, in order.
impl Observer for Vec<Box<dyn Observer>> {
    fn event(&mut self, event: &Event) {
        self.iter_mut().for_each(|observer| observer.event(event));
    }
}

/// Listens to nothing.
impl Observer for () {
    fn event(&mut self, _: &Event) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_that_is_no_number_can_be_read_back() {
        let record = Record::Evaluation { step: 1, loss: f32::INFINITY, accuracy: None };
        let line = serde_json::to_string(&record).expect("null for infinity");
        let read: Record = serde_json::from_str(&line).expect("its own line");
        assert!(matches!(read, Record::Evaluation { step: 1, loss, .. } if loss.is_nan()));
    }

    #[test]
    fn a_loss_survives_json_bit_for_bit() {
        for bits in [0x4031_1111, 0x3f80_0001, 0x0000_0001, 0x7f7f_ffff] {
            let record =
                Record::Train { step: 3, loss: f32::from_bits(bits), rate: 1e-3, grad_norm: None };
            let line = serde_json::to_string(&record).expect("plain numbers");
            assert!(line.starts_with(r#"{"kind":"train","step":3,"#), "{line}");
            assert_eq!(serde_json::from_str::<Record>(&line).expect("its own line"), record);
        }
    }
}
