//! The configuration of a run: what `config.toml` in its folder holds.

use std::path::Path;

use onesigma_format::Format;
use onesigma_graph::Role;
use onesigma_graph::recipe::{Recipe, Rule, Use};
use onesigma_models::config::NormPosition;
use onesigma_ops::Parametrisation;
use serde::{Deserialize, Serialize};

use onesigma_models::{BertConfig, GptConfig};

use crate::corpus::FIELD;
use crate::generate::Sampling;
use crate::memory::Budget;
use crate::optimizer::Optimizer;
use crate::rates::Rates;
use crate::schedule::{Decay, Schedule};
use crate::task::Task;
use crate::{Error, run_file};

/// Added to the root of AdamW's second moment.
const EPSILON: f64 = 1e-8;

/// The names of the optimisers.
pub const OPTIMIZERS: [&str; 4] = ["adamw", "adam", "lion", "sgd"];

/// Which model is trained.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ModelType {
    /// A decoder.
    #[default]
    Gpt2,
    /// An encoder with heads.
    Bert,
}

impl ModelType {
    /// Every type by its name on the command line.
    pub const NAMES: [(&'static str, Self); 2] = [("gpt2", Self::Gpt2), ("bert", Self::Bert)];
}

/// Size of the model that is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// Transformer blocks.
    pub layers: usize,
    /// Attention heads; divides `hidden`.
    pub heads: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Tokens in one sequence.
    pub seq: usize,
    /// Where the norm of a residual branch stands; if absent, as the parametrisation has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm_position: Option<NormPosition>,
    /// Unit-scaled models only: `tau` of every residual branch, in place of the rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub residual_tau: Option<f64>,
    /// Unit-scaled models only: weight of the residual branches against the embedding under the
    /// rule; if absent, the parametrisation's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub residual_mult: Option<f64>,
    /// Unit-scaled models only: the number of keys whose scale attention takes; if absent, what
    /// was found best for the parametrisation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attention_keys: Option<usize>,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            layers: 4,
            heads: 4,
            hidden: 128,
            seq: 128,
            norm_position: None,
            residual_tau: None,
            residual_mult: None,
            attention_keys: None,
        }
    }
}

/// Everything that decides what a run computes, and how often it looks and saves.
///
/// Two runs with equal configurations, corpora and backends give equal losses, bit for bit.
///
/// ```
/// use onesigma_train::config::{Config, ModelConfig};
///
/// let config = Config {
///     recipe: "unit-fp8".into(),
///     steps: 100,
///     model: ModelConfig { layers: 2, hidden: 64, ..ModelConfig::default() },
///     ..Config::default()
/// };
/// assert_eq!(config.optimizer, "adamw");
/// assert!(config.optimizer().is_ok());
/// # Ok::<(), onesigma_train::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Name of the recipe: formats and scaling.
    pub recipe: String,
    /// How the model is built, if not as the recipe says.
    pub parametrisation: Option<Parametrisation>,
    /// Name of the backend.
    pub backend: String,
    /// Which model.
    pub model_type: ModelType,
    /// What it is trained for; if absent, the next token (gpt2) or masked tokens (bert).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<Task>,
    /// A checkpoint, run folder or Hugging Face folder whose weights it starts from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_from: Option<String>,
    /// `bytes`, `wordpiece` (learned from the data), or the path of a `tokenizer.json`, a
    /// `vocab.txt` or a folder with one; if absent, `bytes` (gpt2) or `wordpiece` (bert). The run
    /// folder keeps its own copy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    /// Tokens of a vocabulary that is learned.
    pub vocabulary: usize,
    /// Share of the tokens that are predicted, for masked tokens.
    pub mask_probability: f64,
    /// `cargo`, or the path of a text file or folder; for classification and span the examples.
    pub data: String,
    /// Of JSON lines, the field that holds the text.
    pub field: String,
    /// Folder of tokenised texts; if absent, the user's cache folder, and only for texts that cost
    /// something to read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<String>,
    /// Path of the text to measure on; if absent, a part of `data` is held back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid: Option<String>,
    /// Seed of initialisation, shuffling and stochastic rounding.
    pub seed: u64,
    /// Optimiser steps of the whole run.
    pub steps: u64,
    /// Sequences in one pass.
    pub batch: usize,
    /// Passes whose gradients one optimiser step averages.
    pub accumulate: usize,
    /// Constant factor on the loss before the backward pass, in place of the recipe's own scaling;
    /// for regular models alone. A step whose gradients overflow is skipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<f64>,
    /// Largest norm that the true gradient of the mean loss over all parameters may have in an
    /// update; what is longer is shortened to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<f64>,
    /// `adamw`, `adam`, `lion` or `sgd`.
    pub optimizer: String,
    /// Format of the weights that the optimiser updates; if absent, the recipe's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub master_weight: Option<Format>,
    /// Format of the first moment; if absent, the recipe's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_moment: Option<Format>,
    /// Format of the second moment; if absent, the recipe's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub second_moment: Option<Format>,
    /// Peak learning rate; if absent, one that suits parametrisation and optimiser.
    pub lr: Option<f64>,
    /// Decay after the warm-up.
    pub schedule: Decay,
    /// Steps of linear warm-up; if absent, a tenth of the run and at most 100.
    pub warmup: Option<u64>,
    /// Last learning rate as a fraction of the peak.
    pub final_lr_fraction: f64,
    /// Decay of weights per unit of learning rate.
    pub weight_decay: f64,
    /// Decay of the first moment (AdamW, Adam), its weight in the update (Lion), or momentum (SGD).
    pub beta1: f64,
    /// Decay of the second moment (AdamW, Adam), or of the moment (Lion).
    pub beta2: f64,
    /// Steps between evaluations; 0 evaluates at the end alone.
    pub eval_every: u64,
    /// Batches of one evaluation.
    pub eval_batches: usize,
    /// Evaluations without a lower validation loss after which the run ends; 0 never ends it.
    pub patience: u64,
    /// By how much the validation loss has to fall below the lowest one to count as lower, in nats.
    pub min_improvement: f64,
    /// Steps between checkpoints; 0 saves at the end alone.
    pub save_every: u64,
    /// Checkpoints that are kept.
    pub keep: usize,
    /// Keep the state with the lowest validation loss as well, as `best.safetensors`.
    pub keep_best: bool,
    /// Steps that one call of the engine takes at most; fewer where they are slow.
    pub steps_per_call: u64,
    /// Memory that the program may take; what does not fit is recomputed. If absent, as much as it
    /// takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Budget>,
    /// Steps between samples of text; 0 draws none. For language models.
    pub sample_every: u64,
    /// Tokens of a sample.
    pub sample_tokens: usize,
    /// The text that samples continue.
    pub sample_prompt: String,
    /// Divides the logits of a sample; 0 always takes the likeliest token.
    pub sample_temperature: f64,
    /// Write event files for TensorBoard.
    pub tensorboard: bool,
    /// Refuse a backend that has to emulate a format or decompose an op.
    pub strict: bool,
    /// Factors on the learning rate by kind of parameter.
    #[serde(skip_serializing_if = "is_default")]
    pub rates: Rates,
    /// The model's size.
    pub model: ModelConfig,
    /// The whole architecture of a decoder; if absent, it follows from the size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpt: Option<GptConfig>,
    /// The whole architecture of an encoder; if absent, it follows from the size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bert: Option<BertConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            recipe: "unit-fp8".into(),
            parametrisation: None,
            backend: "cpu".into(),
            model_type: ModelType::Gpt2,
            task: None,
            init_from: None,
            tokenizer: None,
            vocabulary: 8192,
            mask_probability: 0.15,
            data: "cargo".into(),
            field: FIELD.into(),
            cache: None,
            valid: None,
            seed: 0,
            steps: 1000,
            batch: 16,
            accumulate: 1,
            loss_scale: None,
            clip: None,
            optimizer: "adamw".into(),
            master_weight: None,
            first_moment: None,
            second_moment: None,
            lr: None,
            schedule: Decay::Cosine,
            warmup: None,
            final_lr_fraction: 0.1,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.99,
            eval_every: 100,
            eval_batches: 16,
            patience: 0,
            min_improvement: 0.0,
            save_every: 200,
            keep: 3,
            keep_best: true,
            steps_per_call: 10,
            memory: None,
            sample_every: 0,
            sample_tokens: 120,
            sample_prompt: String::new(),
            sample_temperature: 0.8,
            tensorboard: true,
            strict: false,
            rates: Rates::default(),
            model: ModelConfig::default(),
            gpt: None,
            bert: None,
        }
    }
}

impl Config {
    /// Reads a run file; what it leaves out has its default.
    ///
    /// # Errors
    /// [`Error::Config`] if there is no such file, for what is not TOML, and for a wrong or unknown
    /// entry, with the nearest known one; [`Error::Io`].
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        run_file::config(run_file::read(path)?, &path.to_string_lossy())
    }

    /// Checks that every number can work, before anything is compiled or read.
    ///
    /// # Errors
    /// [`Error::Setting`] or [`Error::Unknown`], for the first one that cannot.
    pub fn validate(&self) -> Result<(), Error> {
        let model = &self.model;
        for (name, value) in [
            ("--layers", model.layers),
            ("--heads", model.heads),
            ("--hidden", model.hidden),
            ("--seq", model.seq),
            ("--batch", self.batch),
            ("--accumulate", self.accumulate),
            ("--eval-batches", self.eval_batches),
            ("--keep", self.keep),
            ("--steps", usize::try_from(self.steps).unwrap_or(usize::MAX)),
            ("--steps-per-call", usize::try_from(self.steps_per_call).unwrap_or(usize::MAX)),
        ] {
            if value == 0 {
                return Err(setting(name, value, "at least 1"));
            }
            // Beyond this a shape's size in bytes would leave 64 bits.
            if value > 1 << 24 {
                return Err(setting(name, value, "at most 16777216"));
            }
        }
        if !model.hidden.is_multiple_of(model.heads) {
            let expected = format!("a multiple of the {} heads", model.heads);
            return Err(setting("--hidden", model.hidden, &expected));
        }
        for (name, value) in [
            ("model.residual_tau", model.residual_tau),
            ("model.residual_mult", model.residual_mult),
        ] {
            if let Some(value) = value.filter(|value| !(value.is_finite() && *value > 0.0)) {
                return Err(setting(name, value, "a positive number"));
            }
        }
        if model.attention_keys == Some(0) {
            return Err(setting("model.attention_keys", 0, "at least 1"));
        }
        if !(self.mask_probability > 0.0 && self.mask_probability <= 1.0) {
            return Err(setting("mask_probability", self.mask_probability, "above 0, at most 1"));
        }
        if (self.task() == Task::LanguageModel) != (self.model_type == ModelType::Gpt2) {
            let expected = match self.model_type {
                ModelType::Gpt2 => "language-model, or --model-type bert",
                ModelType::Bert => {
                    "masked-lm, pre-training, classification or span, or --model-type gpt2"
                }
            };
            return Err(setting("--task", self.task().name(), expected));
        }
        self.optimizer()?;
        self.rates.validate()?;
        for (name, value) in [("--beta1", self.beta1), ("--beta2", self.beta2)] {
            if !(0.0..1.0).contains(&value) {
                return Err(setting(name, value, "from 0 to below 1"));
            }
        }
        if !(self.weight_decay.is_finite() && self.weight_decay >= 0.0) {
            return Err(setting("--weight-decay", self.weight_decay, "0 or more"));
        }
        for (name, value) in [("--clip", self.clip), ("--loss-scale", self.loss_scale)] {
            if let Some(value) = value.filter(|value| !(value.is_normal() && *value > 0.0)) {
                return Err(setting(name, value, "a positive number"));
            }
        }
        if !(self.min_improvement.is_finite() && self.min_improvement >= 0.0) {
            return Err(setting("min_improvement", self.min_improvement, "0 or more"));
        }
        if self.patience > 0 && self.eval_every == 0 {
            return Err(setting("--patience", self.patience, "0 where --eval-every is 0"));
        }
        if self.sample_every > 0 && self.task() != Task::LanguageModel {
            let expected = "0 for a model that predicts no next token";
            return Err(setting("--sample-every", self.sample_every, expected));
        }
        self.sampling().validate()?;
        self.schedule(1.0).validate()?;
        match self.lr {
            Some(lr) => self.schedule(lr).validate(),
            None => Ok(()),
        }
    }

    /// What the model is trained for.
    pub fn task(&self) -> Task {
        self.task.unwrap_or(match self.model_type {
            ModelType::Gpt2 => Task::LanguageModel,
            ModelType::Bert => Task::MaskedLm,
        })
    }

    /// The architecture of an encoder: its own, or what follows from the size.
    pub fn bert_architecture(&self) -> BertConfig {
        let (size, default) = (&self.model, BertConfig::default());
        self.bert.clone().unwrap_or_else(|| BertConfig {
            vocab_size: self.vocabulary,
            hidden_size: size.hidden,
            num_hidden_layers: size.layers,
            num_attention_heads: size.heads,
            intermediate_size: 4 * size.hidden,
            max_position_embeddings: size.seq,
            norm_position: size.norm_position.unwrap_or(default.norm_position),
            residual_tau: size.residual_tau,
            residual_mult: size.residual_mult.unwrap_or(default.residual_mult),
            attention_keys: size.attention_keys,
            ..default
        })
    }

    /// The optimiser's constants.
    ///
    /// # Errors
    /// [`Error::Unknown`] for a name outside [`OPTIMIZERS`].
    pub fn optimizer(&self) -> Result<Optimizer, Error> {
        let decay = self.weight_decay;
        match self.optimizer.as_str() {
            "adamw" => {
                Ok(Optimizer::AdamW { beta1: self.beta1, beta2: self.beta2, eps: EPSILON, decay })
            }
            "adam" => {
                Ok(Optimizer::Adam { beta1: self.beta1, beta2: self.beta2, eps: EPSILON, decay })
            }
            "lion" => Ok(Optimizer::Lion { beta1: self.beta1, beta2: self.beta2, decay }),
            "sgd" => Ok(Optimizer::Sgd { momentum: self.beta1, decay }),
            _ => Err(Error::Unknown {
                kind: "optimizer",
                given: self.optimizer.clone(),
                known: OPTIMIZERS.join(", "),
            }),
        }
    }

    /// Puts the configuration's own formats of states before the rules of a recipe.
    pub fn add_state_formats(&self, recipe: &mut Recipe) {
        let own = [
            (Role::MasterWeight, self.master_weight),
            (Role::FirstMoment, self.first_moment),
            (Role::SecondMoment, self.second_moment),
        ];
        for (role, format) in own {
            if let Some(format) = format {
                recipe.rules.insert(0, Rule::new(role, Use::Store, format));
            }
        }
    }

    /// How samples are drawn during training.
    pub fn sampling(&self) -> Sampling {
        Sampling { temperature: self.sample_temperature, top_k: 0, seed: self.seed }
    }

    /// Steps of warm-up, whether they were chosen or not.
    pub fn warmup_steps(&self) -> u64 {
        self.warmup.unwrap_or((self.steps / 10).min(100))
    }

    /// Takes over from `other` what may change when a run is continued: its length, and how often
    /// it looks and saves. The warm-up stays that of the run as it began.
    pub fn continue_as(&mut self, other: &Self) {
        self.warmup = Some(self.warmup_steps());
        self.steps = other.steps;
        self.cache.clone_from(&other.cache);
        self.eval_every = other.eval_every;
        self.eval_batches = other.eval_batches;
        self.patience = other.patience;
        self.min_improvement = other.min_improvement;
        self.save_every = other.save_every;
        self.keep = other.keep;
        self.keep_best = other.keep_best;
        self.steps_per_call = other.steps_per_call;
        self.sample_every = other.sample_every;
        self.sample_tokens = other.sample_tokens;
        self.sample_prompt.clone_from(&other.sample_prompt);
        self.sample_temperature = other.sample_temperature;
        self.tensorboard = other.tensorboard;
    }

    /// Whether a run with the configuration `other` can be continued with this one.
    pub fn continues(&self, other: &Self) -> bool {
        let (mut own, mut other) = (self.clone(), other.clone());
        own.warmup = Some(own.warmup_steps());
        other.continue_as(&own);
        own == other
    }

    /// The learning-rate schedule, where `default_lr` is the recipe's own peak.
    pub fn schedule(&self, default_lr: f64) -> Schedule {
        Schedule {
            decay: self.schedule,
            peak: self.lr.unwrap_or(default_lr),
            final_fraction: self.final_lr_fraction,
            warmup_steps: self.warmup_steps(),
            total_steps: self.steps,
        }
    }

    /// Tokens that one optimiser step trains on.
    pub fn tokens_per_step(&self) -> u64 {
        (self.batch * self.accumulate * self.model.seq) as u64
    }
}

fn is_default(rates: &Rates) -> bool {
    *rates == Rates::default()
}

fn setting(name: &'static str, given: impl ToString, expected: &str) -> Error {
    Error::Setting { name, given: given.to_string(), expected: expected.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_decides_about_norms_and_residuals_of_both_models() {
        let size = ModelConfig {
            norm_position: Some(NormPosition::Pre),
            residual_tau: Some(0.25),
            residual_mult: Some(0.5),
            ..ModelConfig::default()
        };
        let bert = Config { model: size, ..Config::default() }.bert_architecture();
        let found = (bert.norm_position, bert.residual_tau, bert.residual_mult);
        assert_eq!(found, (NormPosition::Pre, Some(0.25), 0.5));
        let plain = Config::default().bert_architecture();
        assert_eq!((plain.norm_position, plain.residual_tau), (NormPosition::Post, None));
    }

    #[test]
    fn the_default_works_and_survives_toml() {
        let config = Config::default();
        config.validate().expect("the default");
        let text = toml::to_string(&config).expect("a TOML form");
        assert_eq!(toml::from_str::<Config>(&text).expect("its own text"), config);
    }

    #[test]
    fn a_file_may_leave_out_what_it_does_not_change() {
        let text = "recipe = 'f32'\n[model]\nhidden = 64\n";
        let config: Config = toml::from_str(text).expect("two settings");
        assert_eq!((config.model.hidden, config.model.layers), (64, 4));
        assert!(toml::from_str::<Config>("stepz = 3").is_err());
    }

    #[test]
    fn what_cannot_work_is_named() {
        let wrong = |change: fn(&mut Config), word: &str| {
            let mut config = Config::default();
            change(&mut config);
            let error = config.validate().expect_err(word);
            assert!(error.to_string().contains(word), "{error}");
            assert!(error.is_usage());
        };
        wrong(|c| c.model.heads = 3, "--hidden");
        wrong(|c| c.model.layers = 0, "--layers");
        wrong(|c| c.model.hidden = usize::MAX, "--hidden");
        wrong(|c| c.model.residual_tau = Some(0.0), "residual_tau");
        wrong(|c| c.optimizer = "adamax".into(), "adamax");
        wrong(|c| c.beta2 = 1.0, "--beta2");
        wrong(|c| c.weight_decay = -1.0, "--weight-decay");
        wrong(|c| c.lr = Some(f64::INFINITY), "--lr");
        wrong(|c| c.loss_scale = Some(0.0), "--loss-scale");
        wrong(|c| c.clip = Some(-1.0), "--clip");
        wrong(|c| (c.patience, c.eval_every) = (2, 0), "--patience");
        wrong(|c| (c.sample_every, c.model_type) = (2, ModelType::Bert), "--sample-every");
        wrong(|c| c.warmup = Some(5000), "--warmup");
    }

    #[test]
    fn a_run_may_be_lengthened_and_watched_otherwise_but_stays_itself() {
        let first = Config { steps: 50, ..Config::default() };
        let mut longer = first.clone();
        longer.continue_as(&Config { steps: 500, eval_every: 7, ..Config::default() });
        assert_eq!((longer.steps, longer.eval_every, longer.warmup), (500, 7, Some(5)));
        assert!(longer.continues(&first) && first.continues(&first));
        assert!(!Config { lr: Some(1.0), ..longer.clone() }.continues(&first));
        assert!(!Config { seed: 1, ..longer }.continues(&first));
    }
}
