//! The GPT of `onesigma-models` as training sees it: with the learning-rate rules of its
//! parametrisation.

use onesigma_graph::{Graph, ValueId};
use onesigma_models::config::Norm;
use onesigma_models::{
    CacheStep, Cached, GptConfig, ParamKind, ParamSpec, Params, gpt_loss, gpt_next, gpt_read,
    gpt_step,
};
use onesigma_ops::Parametrisation;

use crate::Result;
use crate::config::ModelConfig;
use crate::optimizer::Optimizer;
use crate::program::{Inputs, Measures, Model, Parameter};
use crate::rates::Rates;
use crate::tokenizer::Bytes;

/// What was found by search, for one parametrisation.
#[derive(Clone, Copy, Debug)]
struct Tuning {
    /// Peak learning rate, which each parameter's own factor multiplies.
    rate: f64,
    /// Factor on the logits of attention.
    attention_mult: f64,
    /// Weight of residual branches against the embedding.
    residual_mult: f64,
    /// Number of keys whose scale attention takes, where a sequence has more.
    attention_keys: usize,
    /// Factor on the readout's learning rate.
    readout_rate: f64,
}

impl Tuning {
    const NEUTRAL: Self = Self {
        rate: 0.003,
        attention_mult: 1.0,
        residual_mult: 1.0,
        attention_keys: 16,
        readout_rate: 1.0,
    };

    /// From coarse searches on the default size and corpus, but for the keys of attention, which
    /// are from one at 86 million parameters and 512 tokens.
    fn of(p: Parametrisation) -> Self {
        let neutral = Self::NEUTRAL;
        match p {
            Parametrisation::UMup => Self {
                rate: 1.0,
                attention_mult: 4.0,
                residual_mult: 0.5,
                readout_rate: 2.0,
                ..neutral
            },
            Parametrisation::Unit => Self { rate: 0.05, residual_mult: 0.25, ..neutral },
            Parametrisation::MuS => Self { rate: 0.05, readout_rate: 64.0, ..neutral },
            _ => neutral,
        }
    }
}

/// The peak learning rate that suits the byte-level model of a parametrisation and an optimiser:
/// those of AdamW from coarse searches on the default size and corpus, those of SGD and Lion from
/// sweeps at half that size (the book, chapter Training, has the tables).
pub fn default_rate(p: Parametrisation, optimizer: &Optimizer) -> f64 {
    match optimizer {
        Optimizer::Sgd { .. } => match p {
            Parametrisation::Unit => 0.003,
            Parametrisation::UMup => 0.01,
            Parametrisation::MuS => 0.001,
            _ => 0.03,
        },
        Optimizer::Lion { .. } => match p {
            Parametrisation::Unit => 0.03,
            Parametrisation::UMup => 0.3,
            Parametrisation::MuS => 0.02,
            _ => 0.003,
        },
        _ => Tuning::of(p).rate,
    }
}

/// A GPT without biases and with plain RMS norms, as u-muP (arXiv 2407.17465, section 3) has it,
/// or with an architecture of its own.
#[derive(Clone, Debug)]
pub struct Gpt {
    config: GptConfig,
    parametrisation: Parametrisation,
    parameters: Vec<Parameter>,
}

impl Gpt {
    /// The byte-level model of a size.
    ///
    /// The multipliers come from a coarse search on the default size and corpus: 200 steps of
    /// `u-mup-fp8` ended at a validation loss of 2.3 with them, at 2.7 with all of them 1; those of
    /// `unit-f32` at 2.35 with a residual weight of 1/4 and at 2.52 with 1. Why attention takes the
    /// scale of 16 keys is in `docs/src/decisions/0007-keys-of-causal-attention.md`.
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
        let tuning = Tuning::of(parametrisation);
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
            attention_mult: tuning.attention_mult,
            norm_position: size.norm_position,
            residual_tau: size.residual_tau,
            residual_mult: size.residual_mult.unwrap_or(tuning.residual_mult),
            attention_keys: parametrisation
                .is_scaled()
                .then(|| size.attention_keys.unwrap_or(tuning.attention_keys.min(size.seq))),
            ..GptConfig::default()
        }
    }

    /// The model of an architecture.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) for an impossible one.
    pub fn from_config(config: GptConfig, parametrisation: Parametrisation) -> Result<Self> {
        let specs = config.parameters(parametrisation)?;
        let parameters = parameters(specs, parametrisation, config.n_layer);
        Ok(Self { config, parametrisation, parameters })
    }

    /// The same model with factors on its learning rates.
    #[must_use]
    pub fn with_rates(mut self, rates: &Rates) -> Self {
        rates.apply(&mut self.parameters);
        self
    }

    fn params(&self, values: &[ValueId]) -> Params {
        params(&self.parameters, values)
    }
}

/// The values of parameters by name.
pub(crate) fn params(parameters: &[Parameter], values: &[ValueId]) -> Params {
    let names = parameters.iter().map(|parameter| parameter.spec.name.clone());
    Params::new(names.zip(values.iter().copied()))
}

/// Parameters of a model of `layers` layers with their own factors on the learning rate.
pub(crate) fn parameters(
    specs: Vec<ParamSpec>,
    p: Parametrisation,
    layers: usize,
) -> Vec<Parameter> {
    let (tuning, scheme) = (Tuning::of(p), p.scheme());
    specs
        .into_iter()
        .map(|spec| {
            let depth = spec.layer.map(|_| layers);
            let mut lr_scale = scheme.learning_rate.factor(spec.kind, spec.shape.dims(), depth);
            if spec.kind == ParamKind::Readout {
                lr_scale *= tuning.readout_rate;
            }
            Parameter { spec, lr_scale }
        })
        .collect()
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

    fn read(
        &self,
        graph: &mut Graph,
        parameters: &[ValueId],
        tokens: ValueId,
        position: ValueId,
    ) -> Result<Option<Cached>> {
        let mut params = self.params(parameters);
        let (config, p) = (&self.config, self.parametrisation);
        Ok(Some(gpt_read(graph, &mut params, config, p, tokens, position)?))
    }

    fn step(
        &self,
        graph: &mut Graph,
        parameters: &[ValueId],
        step: CacheStep<'_>,
    ) -> Result<Option<Cached>> {
        let mut params = self.params(parameters);
        Ok(Some(gpt_step(graph, &mut params, &self.config, self.parametrisation, step)?))
    }
}
