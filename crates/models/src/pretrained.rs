//! A model with its weights, in one parametrisation, and the way into another.

use crate::bert_config::{BertConfig, BertTask};
use crate::convert::{StreamScale, constants};
use crate::params::ParamSpec;
use crate::tensor_file::{Tensor, Weights};
use crate::{Error, GptConfig, Result};
use onesigma_ops::Parametrisation;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// An architecture: which parameters there are.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Model {
    /// A decoder.
    Gpt(GptConfig),
    /// An encoder with the heads of a task.
    Bert {
        /// The encoder.
        config: BertConfig,
        /// The heads.
        task: BertTask,
    },
}

impl Model {
    /// Every parameter.
    ///
    /// # Errors
    /// [`Error::Config`] for an impossible configuration.
    pub fn parameters(&self, p: Parametrisation) -> Result<Vec<ParamSpec>> {
        match self {
            Self::Gpt(config) => config.parameters(p),
            Self::Bert { config, task } => config.parameters(*task, p),
        }
    }

    /// Name of the table of tokens.
    pub const fn token_table(&self) -> &'static str {
        match self {
            Self::Gpt(_) => "transformer.wte.weight",
            Self::Bert { .. } => "bert.embeddings.word_embeddings.weight",
        }
    }

    /// Name of the readout of tokens where it is not the table.
    const fn readout(&self) -> &'static str {
        match self {
            Self::Gpt(_) => "lm_head.weight",
            Self::Bert { .. } => "cls.predictions.decoder.weight",
        }
    }

    /// Longest sequence.
    pub const fn positions(&self) -> usize {
        match self {
            Self::Gpt(config) => config.n_positions,
            Self::Bert { config, .. } => config.max_position_embeddings,
        }
    }

    const fn initializer_range(&self) -> f64 {
        match self {
            Self::Gpt(config) => config.initializer_range,
            Self::Bert { config, .. } => config.initializer_range,
        }
    }

    /// The fields that a conversion sets: epsilons, keys, and what each parametrisation has its own
    /// default for.
    fn converted(&self, from: Parametrisation, scale: Option<StreamScale>) -> Self {
        let mut model = self.clone();
        match &mut model {
            Self::Gpt(config) => {
                let keys = Some(config.n_positions);
                config.norm_position = Some(config.norm_position(from));
                config.tie_word_embeddings = Some(false);
                config.attention_keys = config.attention_keys.or(keys);
                config.stream_scale = scale;
            }
            Self::Bert { config, .. } => {
                config.tie_word_embeddings = Some(false);
                config.stream_scale = scale;
            }
        }
        model
    }

    const fn stream_scale(&self) -> Option<StreamScale> {
        match self {
            Self::Gpt(config) => config.stream_scale,
            Self::Bert { config, .. } => config.stream_scale,
        }
    }

    fn is_tied(&self, p: Parametrisation) -> bool {
        match self {
            Self::Gpt(config) => config.tied(p),
            Self::Bert { config, task } => {
                matches!(task, BertTask::MaskedLm | BertTask::PreTraining) && config.tied()
            }
        }
    }
}

/// A model and its weights.
///
/// ```no_run
/// use std::path::Path;
///
/// use onesigma_models::Pretrained;
/// use onesigma_ops::Parametrisation;
///
/// let regular = Pretrained::load(Path::new("all-MiniLM-L6-v2"))?;
/// // The same function with weights of unit variance.
/// let unit = regular.convert(Parametrisation::Unit)?;
/// println!("{} parameters were multiplied", unit.factors.len());
/// # Ok::<(), onesigma_models::Error>(())
/// ```
#[derive(Clone, PartialEq, Debug)]
pub struct Pretrained {
    /// The architecture.
    pub model: Model,
    /// How the weights are meant.
    pub parametrisation: Parametrisation,
    /// Every parameter by name.
    pub weights: Weights,
}

/// What a conversion did.
#[derive(Clone, PartialEq, Debug)]
pub struct Converted {
    /// The model in its new parametrisation.
    pub model: Pretrained,
    /// By what each parameter was multiplied; those that are not listed stayed as they were.
    pub factors: BTreeMap<String, f64>,
}

impl Pretrained {
    /// Checks that every parameter is there with its shape, and no other.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::UnexpectedTensor`], [`Error::TensorShape`].
    pub fn check(&self) -> Result<()> {
        let specs = self.model.parameters(self.parametrisation)?;
        for spec in &specs {
            let Some(tensor) = self.weights.get(&spec.name) else {
                return Err(Error::MissingTensor { name: spec.name.clone() });
            };
            if tensor.shape != spec.shape.dims() {
                return Err(Error::TensorShape {
                    name: spec.name.clone(),
                    found: format!("{:?}", tensor.shape),
                    expected: spec.shape.to_string(),
                });
            }
        }
        match self.weights.keys().find(|name| specs.iter().all(|spec| spec.name != **name)) {
            Some(name) => Err(Error::UnexpectedTensor { name: name.clone() }),
            None => Ok(()),
        }
    }

    /// The same function in another parametrisation: every tensor multiplied by one constant, so
    /// that outputs are equal up to the rounding of the new weights to f32.
    ///
    /// The readout of tokens becomes a parameter of its own, as both uses of a tied table want
    /// different constants. The new configuration remembers for what its epsilons are meant, and
    /// for which number of keys attention is scaled (the longest sequence if the old one does not
    /// say). Without that memory, in another program, norms see epsilons that differ by the ratio
    /// of the residual streams.
    ///
    /// # Errors
    /// [`Error::Convert`] for a model whose scales cannot be moved into its weights, or a step
    /// that is neither from nor to regular weights; as [`check`](Self::check).
    pub fn convert(&self, to: Parametrisation) -> Result<Converted> {
        self.check()?;
        let from = self.parametrisation;
        if from == to {
            return Ok(Converted { model: self.clone(), factors: BTreeMap::new() });
        }
        let scaled = match (from, to) {
            (Parametrisation::Regular, scaled) | (scaled, Parametrisation::Regular) => scaled,
            _ => {
                let reason =
                    format!("{from} to {to} goes by way of regular weights: convert twice");
                return Err(Error::Convert { reason });
            }
        };
        let old = self.model.stream_scale();
        // With keys and norm position set, constants are those of both models.
        let model = self.model.converted(from, None);
        let (stream, scale) = match old {
            Some(StreamScale { from: origin, stream }) if origin == to => (stream, None),
            Some(StreamScale { from: origin, .. }) => {
                let reason = format!(
                    "its weights come from {origin} and its epsilons are meant for that; convert \
                     it back first"
                );
                return Err(Error::Convert { reason });
            }
            None => {
                let stream = self.stream(&model, scaled)?;
                (stream, Some(StreamScale { from, stream }))
            }
        };
        let constants = constants(&model, scaled, stream)?;
        let mut weights = self.weights.clone();
        if self.model.is_tied(from) {
            let table = weights.get(self.model.token_table()).cloned();
            weights.extend(table.map(|table| (self.model.readout().to_owned(), table)));
        }
        let mut factors = BTreeMap::new();
        for (name, tensor) in &mut weights {
            let Some(&constant) = constants.get(name) else { continue };
            let factor = if to == scaled { constant } else { constant.recip() };
            for value in &mut tensor.values {
                *value = (f64::from(*value) * factor) as f32;
            }
            factors.insert(name.clone(), factor);
        }
        let model = self.model.converted(from, scale);
        let model = Self { model, parametrisation: to, weights };
        model.check()?;
        Ok(Converted { model, factors })
    }

    /// The ratio of the regular embedding to the scaled one that gives the table of tokens a root
    /// mean square of 1 (scaled) or `initializer_range` (regular).
    fn stream(&self, model: &Model, scaled: Parametrisation) -> Result<f64> {
        let table = self.model.token_table();
        let Some(tensor) = self.weights.get(table) else {
            return Err(Error::MissingTensor { name: table.to_owned() });
        };
        let size = rms(tensor);
        if !(size > 0.0 && size.is_finite()) {
            let reason = format!("`{table}` has a root mean square of {size}");
            return Err(Error::Convert { reason });
        }
        let at_one = constants(model, scaled, 1.0)?.get(table).copied().unwrap_or(1.0);
        // The table's factor is at_one / stream, from regular to scaled.
        Ok(match self.parametrisation {
            Parametrisation::Regular => at_one * size,
            _ => at_one * model.initializer_range() / size,
        })
    }
}

/// Root mean square of a tensor's elements.
pub fn rms(tensor: &Tensor) -> f64 {
    let square = |sum: f64, &x: &f32| sum + f64::from(x).powi(2);
    (tensor.values.iter().fold(0.0, square) / tensor.values.len().max(1) as f64).sqrt()
}
