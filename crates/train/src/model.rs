//! The GPT of `onesigma-models` as training sees it: with the learning-rate rules of u-muP.

use onesigma_graph::{Graph, ValueId};
use onesigma_models::config::Norm;
use onesigma_models::{GptConfig, ParamKind, Params, gpt_loss, gpt_next};
use onesigma_ops::Parametrisation;

use crate::Result;
use crate::config::ModelConfig;
use crate::program::{Model, Parameter};
use crate::tokenizer::Bytes;

/// Factor on the logits of attention in a unit-scaled model.
const ATTENTION_MULT: f64 = 4.0;
/// Weight of residual branches against the embedding in a unit-scaled model.
const RESIDUAL_MULT: f64 = 0.5;
/// Factor on the embeddings' learning rate in a unit-scaled model.
const EMBEDDING_RATE: f64 = 2.0;
/// Factor on the readout's learning rate in a unit-scaled model.
const READOUT_RATE: f64 = 4.0;

/// A GPT without biases and with plain RMS norms, as u-muP (arXiv 2407.17465, section 3) has it.
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
        let mult = |mult: f64| if parametrisation.is_scaled() { mult } else { 1.0 };
        let config = GptConfig {
            vocab_size: Bytes::VOCABULARY,
            n_positions: size.seq,
            n_embd: size.hidden,
            n_layer: size.layers,
            n_head: size.heads,
            norm: Norm::RmsNorm,
            norm_affine: false,
            bias: false,
            tie_word_embeddings: Some(false),
            attention_mult: mult(ATTENTION_MULT),
            norm_position: size.norm_position,
            residual_tau: size.residual_tau,
            residual_mult: size.residual_mult.unwrap_or(mult(RESIDUAL_MULT)),
            ..GptConfig::default()
        };
        let specs = config.parameters(parametrisation)?;
        let names = specs.iter().map(|spec| spec.name.clone()).collect();
        let parameters = specs
            .into_iter()
            .map(|spec| {
                let scaled = parametrisation.is_scaled();
                let lr_scale = if scaled { rate(spec.kind, spec.fan_in) } else { 1.0 };
                Parameter { spec, lr_scale }
            })
            .collect();
        Ok(Self { config, parametrisation, names, parameters })
    }

    fn params(&self, values: &[ValueId]) -> Params {
        Params::new(self.names.iter().cloned().zip(values.iter().copied()))
    }
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
        tokens: ValueId,
        targets: ValueId,
        training: bool,
    ) -> Result<ValueId> {
        let mut params = self.params(parameters);
        let (config, p) = (&self.config, self.parametrisation);
        Ok(gpt_loss(graph, &mut params, config, p, tokens, targets, training)?.loss)
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
