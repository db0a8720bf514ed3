//! The numerics of models, as data: what the page shows and `--json` prints.

use onesigma_format::Format;
use onesigma_graph::predict::{self, Ids, Known, Moments};
use onesigma_graph::{Role, Shape};
use onesigma_train::Result;
use onesigma_train::batch::TrainingBatches;
use onesigma_train::config::Config;
use onesigma_train::numerics::{Measured, Options, Pass, Probe, Tap};
use onesigma_train::program::{StepGraph, build_step};
use serde::{Deserialize, Serialize};

use super::snapshot::{Snapshot, Start, snapshots};
use crate::setup::{self, Parts};

/// Version of the JSON form of [`Report`].
pub const VERSION: u32 = 1;

/// Everything about some models.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`VERSION`].
    pub version: u32,
    /// Program and version that made it.
    pub producer: String,
    /// Candidate formats, in the order of every list by format.
    pub formats: Vec<FormatInfo>,
    /// The models.
    pub models: Vec<ModelReport>,
}

/// The range of a format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FormatInfo {
    /// Name.
    pub name: String,
    /// Bits of a code.
    pub bits: u32,
    /// Bits of the mantissa.
    pub mantissa_bits: u32,
    /// Base-2 logarithm of the smallest positive number.
    pub log2_min_subnormal: f64,
    /// Base-2 logarithm of the smallest normal number.
    pub log2_min_normal: f64,
    /// Base-2 logarithm of the largest number.
    pub log2_max: f64,
}

impl From<Format> for FormatInfo {
    fn from(format: Format) -> Self {
        Self {
            name: format.to_string(),
            bits: format.bits(),
            mantissa_bits: format.mantissa_bits(),
            log2_min_subnormal: format.min_subnormal().log2(),
            log2_min_normal: format.min_normal().log2(),
            log2_max: format.max().log2(),
        }
    }
}

/// One model under one recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelReport {
    /// As the caller named it.
    pub name: String,
    /// Name of its recipe.
    pub recipe: String,
    /// What the recipe is about.
    pub summary: String,
    /// Its configuration.
    pub config: serde_json::Value,
    /// Elements of all parameters.
    pub parameters: usize,
    /// When it was measured; none if it was only predicted.
    pub snapshots: Vec<SnapshotInfo>,
    /// Every tensor of its step, in the order of the step.
    pub tensors: Vec<TensorReport>,
}

/// A step whose tensors were measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// Steps taken before it.
    pub step: u64,
    /// Loss of the step before it in nats per token, if there was one.
    pub loss: Option<f64>,
}

/// One tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorReport {
    /// Name of the node that makes it.
    pub name: String,
    /// Name of its op.
    pub op: String,
    /// What it is for.
    pub role: Role,
    /// The part of the step that makes it.
    pub pass: Pass,
    /// Layer that it belongs to.
    pub layer: Option<u32>,
    /// Extents.
    pub shape: Vec<usize>,
    /// The format that the recipe stores it in.
    pub format: String,
    /// What is expected at the first step; `None` where the predictor knows nothing.
    pub predicted: Option<Numbers>,
    /// What was found, for each snapshot.
    pub measured: Vec<Numbers>,
}

/// Figures of a tensor, expected or found. Shares are of all its elements.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Numbers {
    /// Mean.
    pub mean: f64,
    /// Standard deviation.
    pub sigma: f64,
    /// Root mean square.
    pub rms: f64,
    /// Largest magnitude; `None` if expected.
    pub max_abs: Option<f64>,
    /// Share of elements that are exactly zero; `None` if expected.
    pub zeros: Option<f64>,
    /// Elements that are infinite or NaN.
    pub not_finite: u64,
    /// Exponent of the first entry of `exponents`.
    pub first_exponent: i32,
    /// Shares with `2^(first + i) <= |x| < 2^(first + i + 1)`.
    pub exponents: Vec<f64>,
    /// What its own format loses.
    pub own: FormatLoss,
    /// What each candidate loses.
    pub formats: Vec<FormatLoss>,
}

/// What a format loses of a tensor, in shares of its elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FormatLoss {
    /// Not zero before, zero after.
    pub underflow: f64,
    /// Beyond the largest number.
    pub overflow: f64,
    /// Stored as subnormal numbers.
    pub subnormal: f64,
    /// Signal to rounding noise in decibels; `None` if nothing is lost.
    pub snr_db: Option<f64>,
}

impl FormatLoss {
    /// The larger of the share of elements that are flushed or clipped and the share of energy
    /// that rounding adds as noise: 0 where nothing is lost, 1 where everything is.
    pub fn risk(&self) -> f64 {
        let noise = self.snr_db.map_or(0.0, |db| 10f64.powf(-db / 10.0));
        (self.underflow + self.overflow).max(noise).clamp(0.0, 1.0)
    }
}

/// How a report is made.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Name of the model.
    pub name: String,
    /// The model, its recipe, its data.
    pub config: &'a Config,
    /// Where it starts.
    pub start: Start<'a>,
    /// Batches, if there are any: for the steps, and for the prediction how frequent each token is.
    pub data: Option<&'a dyn TrainingBatches>,
    /// Numbers of steps after which tensors are measured; with none they are only predicted.
    pub after: &'a [u64],
}

/// Predicts, and measures if steps are asked for.
///
/// # Errors
/// As [`snapshots`].
pub fn model(request: &Request<'_>, options: &Options) -> Result<ModelReport> {
    let Request { name, config, start, data, after } = request;
    let parts = Parts::new(config)?;
    let step = build_step(parts.model.as_ref(), &parts.recipe, parts.settings)?;
    let probe = Probe::new(&step)?;
    let mut known = Known::start(&probe.init);
    tell_inputs(&mut known, &step, *data);
    let rate = config.schedule(setup::default_rate(config)?).rate(0);
    for (slot, value) in [(step.slots.lr, f64::from(rate)), (step.slots.step, 0.0)] {
        if let Some(moments) = Moments::constant(&Shape::scalar(), value) {
            known.value(slot, moments);
        }
    }
    let prediction = predict::predict(&probe.graph, &known);
    let found = match data {
        Some(data) if !after.is_empty() => snapshots(config, *start, *data, after, options)?,
        _ => Vec::new(),
    };
    let tensors = probe.taps.iter().enumerate().map(|(index, tap)| {
        let predicted = prediction.of(tap.value).map(|m| expected(m, tap, &options.formats));
        let measured = found.iter().filter_map(|s| s.tensors.get(index)).map(numbers).collect();
        tensor(tap, predicted, measured)
    });
    Ok(ModelReport {
        name: name.clone(),
        recipe: parts.recipe.name.clone(),
        summary: parts.recipe.summary.clone(),
        config: serde_json::to_value(config).unwrap_or_default(),
        parameters: parameter_count(&probe),
        snapshots: found.iter().map(snapshot_info).collect(),
        tensors: tensors.collect(),
    })
}

impl Report {
    /// A report of some models.
    pub fn new(formats: &[Format], models: Vec<ModelReport>) -> Self {
        Self {
            version: VERSION,
            producer: concat!("onesigma ", env!("CARGO_PKG_VERSION")).to_owned(),
            formats: formats.iter().copied().map(FormatInfo::from).collect(),
            models,
        }
    }
}

impl TensorReport {
    /// Figures of a snapshot, or the expected ones where nothing was measured.
    pub fn numbers(&self, snapshot: usize) -> Option<&Numbers> {
        self.measured.get(snapshot).or(self.predicted.as_ref())
    }
}

impl ModelReport {
    /// Tensors by falling risk in their own format, at the last snapshot or as expected.
    pub fn by_risk(&self) -> Vec<(&TensorReport, &Numbers)> {
        let last = self.snapshots.len().saturating_sub(1);
        let mut list: Vec<_> = self
            .tensors
            .iter()
            .filter_map(|tensor| Some((tensor, tensor.numbers(last)?)))
            .collect();
        list.sort_by(|a, b| b.1.own.risk().total_cmp(&a.1.own.risk()));
        list
    }
}

/// Batches whose tokens are counted.
const COUNTED_BATCHES: u64 = 32;

/// Tells the predictor what is in the inputs of a batch: how frequent each number is in a sample
/// of batches; without one, tokens and rows are left as uniform and masks as all ones.
fn tell_inputs(known: &mut Known, step: &StepGraph, data: Option<&dyn TrainingBatches>) {
    let mut slots = vec![step.slots.tokens, step.slots.targets];
    slots.extend(&step.more_inputs);
    let Some(data) = data else {
        for slot in slots {
            let info = step.module.slot_info(slot);
            let is_mask = matches!(&info.name[..], "mask" | "counted_targets");
            if let Some(ones) = Moments::constant(&info.shape, 1.0).filter(|_| is_mask) {
                known.value(slot, ones);
            }
        }
        return;
    };
    let mut data = data.copy();
    let mut counts: Vec<Vec<u64>> = vec![Vec::new(); slots.len()];
    for index in 0..COUNTED_BATCHES {
        let batch = data.batch(index);
        let inputs = [&batch.inputs, &batch.targets].into_iter().chain(&batch.more);
        for (counts, ids) in counts.iter_mut().zip(inputs) {
            for &id in ids {
                let id = id as usize;
                if id >= counts.len() {
                    counts.resize(id + 1, 0);
                }
                counts[id] += 1;
            }
        }
    }
    for (slot, counts) in slots.into_iter().zip(counts) {
        known.ids(slot, Ids::counted(&counts));
    }
}

fn parameter_count(probe: &Probe) -> usize {
    let is_parameter = |tap: &&Tap| tap.slot.is_some() && tap.role == Role::MasterWeight;
    probe.taps.iter().filter(is_parameter).map(|tap| tap.shape.numel()).sum()
}

fn snapshot_info(snapshot: &Snapshot) -> SnapshotInfo {
    let loss = snapshot.loss.map(f64::from).filter(|loss| loss.is_finite());
    SnapshotInfo { step: snapshot.step, loss }
}

fn tensor(tap: &Tap, predicted: Option<Numbers>, measured: Vec<Numbers>) -> TensorReport {
    TensorReport {
        name: tap.name.clone(),
        op: tap.op.to_owned(),
        role: tap.role,
        pass: tap.pass,
        layer: tap.layer.or_else(|| layer_of(&tap.name)),
        shape: tap.shape.dims().to_vec(),
        format: tap.format.to_string(),
        predicted,
        measured,
    }
}

/// The layer that a name has in it: `transformer.h.3.attn.q_proj.weight`, `grad(layers.3.mlp)`.
fn layer_of(name: &str) -> Option<u32> {
    let mut words = name.split(['.', '(', ')']);
    while let Some(word) = words.next() {
        if matches!(word, "h" | "layer" | "layers") {
            return words.next()?.parse().ok();
        }
    }
    None
}

/// Six digits are enough for every figure of the page.
fn round(x: f64) -> f64 {
    format!("{x:.5e}").parse().unwrap_or(x)
}

fn expected(moments: &Moments, tap: &Tap, formats: &[Format]) -> Numbers {
    let loss = |format| {
        let predict::Losses { underflow, overflow, subnormal, snr_db } =
            predict::losses(moments, format);
        FormatLoss {
            underflow: round(underflow),
            overflow: round(overflow),
            subnormal: round(subnormal),
            snr_db: snr_db.map(round),
        }
    };
    let (first_exponent, exponents) = predict::exponents(moments);
    Numbers {
        mean: round(moments.mean()),
        sigma: round(moments.sigma()),
        rms: round(moments.rms()),
        max_abs: None,
        zeros: None,
        not_finite: 0,
        first_exponent,
        exponents: exponents.into_iter().map(round).collect(),
        own: loss(tap.format),
        formats: formats.iter().map(|&format| loss(format)).collect(),
    }
}

fn numbers(measured: &Measured) -> Numbers {
    let found = &measured.statistics;
    let count = found.count.max(1) as f64;
    let loss = |loss: &onesigma_train::numerics::FormatStatistics| FormatLoss {
        underflow: round(loss.underflow as f64 / count),
        overflow: round(loss.overflow as f64 / count),
        subnormal: round(loss.subnormal as f64 / count),
        snr_db: loss.snr_db.map(round),
    };
    Numbers {
        mean: round(found.mean),
        sigma: round(found.sigma()),
        rms: round(found.rms),
        max_abs: Some(round(found.max_abs)),
        zeros: Some(round(found.zeros as f64 / count)),
        not_finite: found.not_finite,
        first_exponent: found.histogram.first,
        exponents: found.histogram.counts.iter().map(|&n| round(n as f64 / count)).collect(),
        own: loss(&found.own),
        formats: found.formats.iter().map(loss).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn risk_is_the_larger_loss() {
        let loss = |underflow, snr_db| FormatLoss { underflow, snr_db, ..FormatLoss::default() };
        assert_eq!(loss(0.0, None).risk(), 0.0);
        assert_eq!(loss(0.25, Some(20.0)).risk(), 0.25);
        assert!((loss(0.0, Some(20.0)).risk() - 0.01).abs() < 1e-12);
        assert_eq!(loss(1.0, Some(0.0)).risk(), 1.0);
    }

    #[test]
    fn six_digits_stay() {
        assert_eq!(round(123_456.789), 123_457.0);
        assert_eq!(round(-1.234_567_8e-20), -1.234_57e-20);
        assert_eq!(round(0.0), 0.0);
        assert_eq!(layer_of("transformer.h.3.attn.q_proj.weight"), Some(3));
        assert_eq!(layer_of("grad(layers.12.mlp.residual_add).sum"), Some(12));
        assert_eq!(layer_of("lm_head.weight"), None);
    }
}
