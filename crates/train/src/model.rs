//! The GPT of `onesigma-models` as training sees it: with the learning-rate rules of u-muP.

use onesigma_graph::{Graph, ValueId};
use onesigma_models::config::Norm;
use onesigma_models::{GptConfig, ParamKind, ParamSpec, Params, gpt_loss, gpt_next};
use onesigma_ops::Parametrisation;

use crate::Result;
use crate::config::ModelConfig;
use crate::program::{Inputs, Measures, Model, Parameter};
use crate::tokenizer::Bytes;

/// Factor on the logits of attention in a unit-scaled model.
const ATTENTION_MULT: f64 = 4.0;
/// Weight of residual branches against the embedding in a unit-scaled model.
const RESIDUAL_MULT: f64 = 0.5;
/// Factor on the embeddings' learning rate in a unit-scaled model.
const EMBEDDING_RATE: f64 = 2.0;
/// Factor on the readout's learning rate in a unit-scaled model.
const READOUT_RATE: f64 = 4.0;

/// A GPT without biases and with plain RMS norms, as u-muP (arXiv 2407.17465, section 3) has it,
/// or with an architecture of its own.
#[derive(Clone, Debug)]
pub struct Gpt {
    config: GptConfig,
    parametrisation: Parametrisation,
    names: Vec<String>,
    parameters: Vec<Parameter>,
}

impl Gpt {
    /// The byte-level model of a size.
    ///
    /// The multipliers of the unit-scaled one come from a coarse search on the default size and
    /// corpus: 200 steps of `unit-fp8` ended at a validation loss of 2.3 with them, at 2.7 with
    /// all of them 1.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) for an impossible size.
    pub fn new(size: &ModelConfig, parametrisation: Parametrisation) -> Result<Self> {
        let config = Self::architecture(size, Bytes::VOCABULARY, parametrisation);
        Self::from_config(config, parametrisation)
    }

    /// The architecture that [`new`](Self::new) gives a size, for any vocabulary.
    pub fn architecture(
        size: &ModelConfig,
        vocabulary: usize,
        parametrisation: Parametrisation,
    ) -> GptConfig {
        let mult = |mult: f64| if parametrisation.is_scaled() { mult } else { 1.0 };
        GptConfig {
            vocab_size: vocabulary,
            n_positions: size.seq,
            n_embd: size.hidden,
            n_layer: size.layers,
            n_head: size.heads,
            norm: Norm::RmsNorm,
            norm_affine: false,
            bias: false,
            tie_word_embeddings: Some(false),
            attention_mult: mult(ATTENTION_MULT),
            residual_mult: mult(RESIDUAL_MULT),
            ..GptConfig::default()
        }
    }

    /// The model of an architecture.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) for an impossible one.
    pub fn from_config(config: GptConfig, parametrisation: Parametrisation) -> Result<Self> {
        let specs = config.parameters(parametrisation)?;
        let names = specs.iter().map(|spec| spec.name.clone()).collect();
        let parameters = parameters(specs, parametrisation);
        Ok(Self { config, parametrisation, names, parameters })
    }

    fn params(&self, values: &[ValueId]) -> Params {
        Params::new(named(&self.names, values))
    }
}

/// Values with their names.
pub(crate) fn named(names: &[String], values: &[ValueId]) -> Vec<(String, ValueId)> {
    names.iter().cloned().zip(values.iter().copied()).collect()
}

/// Parameters with their own factors on the learning rate.
pub(crate) fn parameters(specs: Vec<ParamSpec>, p: Parametrisation) -> Vec<Parameter> {
    let rate = |spec: &ParamSpec| if p.is_scaled() { rate(spec.kind, spec.fan_in) } else { 1.0 };
    specs.into_iter().map(|spec| Parameter { lr_scale: rate(&spec), spec }).collect()
}

/// Factor on the learning rate of Adam-like optimisers (u-muP, table 2): `fan_in^-1/2` for hidden
/// matrices, `width^-1/2` for tables, none for the readout, each times its multiplier here.
fn rate(kind: ParamKind, fan_in: usize) -> f64 {
    let root = (fan_in.max(1) as f64).powf(-0.5);
    match kind {
        ParamKind::Weight => root,
        ParamKind::Embedding => EMBEDDING_RATE * root,
        ParamKind::Readout => READOUT_RATE,
        _ => 1.0,
    }
}

impl Model for Gpt {
    fn parameters(&self) -> Result<Vec<Parameter>> {
        Ok(self.parameters.clone())
    }

    fn loss(
        &self,
        graph: &mut Graph,
        parameters: &[ValueId],
        inputs: Inputs<'_>,
        training: bool,
    ) -> Result<Measures> {
        let mut params = self.params(parameters);
        let (config, p) = (&self.config, self.parametrisation);
        let Inputs { tokens, targets, .. } = inputs;
        Ok(gpt_loss(graph, &mut params, config, p, tokens, targets, training)?.loss.into())
    }

    fn next_logits(
        &self,
        graph: &mut Graph,
        parameters: &[ValueId],
        tokens: ValueId,
        position: ValueId,
    ) -> Result<ValueId> {
        let mut params = self.params(parameters);
        let (config, p) = (&self.config, self.parametrisation);
        Ok(gpt_next(graph, &mut params, config, p, tokens, position)?)
    }
}
