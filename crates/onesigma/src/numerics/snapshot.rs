//! Real steps, and a look at every tensor of the next one.

use onesigma_graph::SlotId;
use onesigma_train::Result;
use onesigma_train::batch::{Batch, TrainingBatches};
use onesigma_train::checkpoint::Tensor;
use onesigma_train::config::Config;
use onesigma_train::numerics::{Measured, Moment, Options, Probe, measure};
use onesigma_train::program::{StepGraph, build_step};
use onesigma_train::schedule::Schedule;
use serde::Serialize;

use crate::setup::{self, Parts};

/// Where a model starts.
#[derive(Clone, Copy, Debug, Default)]
pub enum Start<'a> {
    /// Freshly initialised from the configuration's seed.
    #[default]
    Init,
    /// The state of a run after `step` steps, sorted by name.
    State {
        /// Steps taken.
        step: u64,
        /// Every state slot.
        tensors: &'a [Tensor],
    },
}

/// Every tensor of one step, as it was.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Snapshot {
    /// The step that was looked at; as many were taken before it.
    pub step: u64,
    /// Mean loss of the step before it, in nats per token, if there was one here.
    pub loss: Option<f32>,
    /// Its tensors, in the order of the step.
    pub tensors: Vec<Measured>,
}

/// Takes real steps of a configuration and measures every tensor of the step that would follow
/// after `after[0]`, `after[1]`, .. of them (ascending; 0 is the start itself), on the batch that
/// the run would use.
///
/// # Errors
/// As [`setup::session`]; those of the backend.
pub fn snapshots(
    config: &Config,
    start: Start<'_>,
    data: &dyn TrainingBatches,
    after: &[u64],
    options: &Options,
) -> Result<Vec<Snapshot>> {
    let parts = Parts::new(config)?;
    let step_graph = build_step(parts.model.as_ref(), &parts.recipe, parts.settings)?;
    let probe = Probe::new(&step_graph)?;
    let schedule = config.schedule(setup::default_rate(config)?);
    let mut data = data.copy();
    let mut session = setup::session(config)?;
    let first = match start {
        Start::Init => {
            session.init(config.seed)?;
            0
        }
        Start::State { step, tensors } => {
            session.seed(config.seed)?;
            session.restore(tensors)?;
            step
        }
    };
    let passes = config.accumulate as u64;
    let mut done = first;
    let mut loss = None;
    let mut result = Vec::with_capacity(after.len());
    for steps in after {
        while done < first + steps {
            let batches: Vec<Batch> =
                (0..passes).map(|pass| data.batch(done * passes + pass)).collect();
            loss = session.train(done, &[schedule.rate(done)], &batches)?.pop();
            done += 1;
        }
        let state = session.state()?;
        let inputs = inputs(&step_graph, config.seed, done, &schedule, &data.batch(done * passes));
        let moment = Moment { state: &state, inputs: &inputs };
        let tensors = measure(&probe, parts.backend.as_ref(), moment, options)?;
        result.push(Snapshot { step: done, loss, tensors });
    }
    Ok(result)
}

/// What the host writes before a step.
fn inputs(
    step: &StepGraph,
    seed: u64,
    done: u64,
    schedule: &Schedule,
    batch: &Batch,
) -> Vec<(SlotId, Vec<u8>)> {
    let words = |values: &[u32]| values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let slots = step.slots;
    let mut inputs = vec![
        (slots.seed, seed.to_le_bytes().to_vec()),
        (slots.step, (done as u32).to_le_bytes().to_vec()),
        (slots.lr, schedule.rate(done).to_le_bytes().to_vec()),
        (slots.tokens, words(&batch.inputs)),
        (slots.targets, words(&batch.targets)),
    ];
    let more = step.more_inputs.iter().zip(&batch.more);
    inputs.extend(more.map(|(&slot, values)| (slot, words(values))));
    inputs
}
