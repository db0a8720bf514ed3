//! The flags that make or change a configuration; shared by `train`, `compile` and `rules verify`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;
use onesigma::format::Format;
use onesigma::ops::Parametrisation;
use onesigma::train::config::{Config, ModelType};
use onesigma::train::memory::Budget;
use onesigma::train::schedule::Decay;
use onesigma::train::task::Task;
use onesigma::train::{Error, run_file};

/// Flags over `--set` over a run file over the defaults.
#[derive(Debug, clap::Args)]
pub struct Settings {
    /// Run file: TOML with any of the settings (as `config.toml` in a run folder); flags change it
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The same as FILE
    #[arg(long, value_name = "FILE", conflicts_with = "file")]
    config: Option<PathBuf>,
    /// Change any setting of the run file, such as model.residual_tau=0.5; may be repeated
    #[arg(long, value_name = "KEY=VALUE", action = clap::ArgAction::Append)]
    set: Vec<String>,
    /// regular, unit, u-mup or mu-s: how the model is scaled [default: as the recipe says]
    #[arg(long, value_name = "NAME", help_heading = "Model")]
    parametrisation: Option<Parametrisation>,
    /// gpt2, a decoder, or bert, an encoder [default: gpt2]
    #[arg(long, value_name = "TYPE", help_heading = "Model")]
    model_type: Option<String>,
    /// language-model, masked-lm, pre-training, classification or span [default: language-model,
    /// for bert masked-lm]
    #[arg(long, help_heading = "Model")]
    task: Option<String>,
    /// Start from the weights of a run, a checkpoint or a Hugging Face folder, with its sizes and
    /// tokeniser; heads that it lacks are new
    #[arg(long, value_name = "RUN|DIR", help_heading = "Model")]
    init_from: Option<PathBuf>,
    /// Transformer blocks [default: 4]
    #[arg(long, help_heading = "Model")]
    layers: Option<usize>,
    /// Attention heads [default: 4]
    #[arg(long, help_heading = "Model")]
    heads: Option<usize>,
    /// Width of the residual stream [default: 128]
    #[arg(long, help_heading = "Model")]
    hidden: Option<usize>,
    /// Tokens in one sequence [default: 128, with --init-from as there]
    #[arg(long, help_heading = "Model")]
    seq: Option<usize>,
    /// f32, bf16, fp16, fp16-loss-scale, unit-f32, unit-fp16, unit-fp8, u-mup-f32, u-mup-fp8,
    /// mu-s-f32, mu-s-fp8, or a .toml file [default: unit-fp8]
    #[arg(long, help_heading = "Numerics")]
    recipe: Option<String>,
    /// Constant factor on the loss before the backward pass, in place of the recipe's own scaling
    #[arg(long, value_name = "FACTOR", allow_negative_numbers = true, help_heading = "Numerics")]
    loss_scale: Option<f64>,
    /// Format in which the optimiser keeps weights [default: as the recipe says]
    #[arg(long, value_name = "FORMAT", help_heading = "Numerics")]
    master_weight: Option<Format>,
    /// Format of the first moment, of momentum [default: as the recipe says]
    #[arg(long, value_name = "FORMAT", help_heading = "Numerics")]
    first_moment: Option<Format>,
    /// Format of the second moment [default: as the recipe says]
    #[arg(long, value_name = "FORMAT", help_heading = "Numerics")]
    second_moment: Option<Format>,
    /// Refuse a backend that would have to emulate a format or decompose an op
    #[arg(long, help_heading = "Numerics")]
    strict: bool,
    /// bytes, wordpiece (learned from the data), or a tokenizer.json, vocab.txt or a folder with
    /// one [default: bytes, for bert wordpiece]
    #[arg(long, value_name = "NAME|FILE|DIR", help_heading = "Data")]
    tokenizer: Option<String>,
    /// Tokens of a vocabulary that is learned [default: 8192]
    #[arg(long, value_name = "TOKENS", help_heading = "Data")]
    vocabulary: Option<usize>,
    /// A file of text or JSON lines, plain, .gz or .zst, a folder of them, or `cargo`: the text of
    /// the dependencies of the Cargo workspace around; for classification and span the examples
    /// [default: cargo]
    #[arg(long, value_name = "FILE|DIR", help_heading = "Data")]
    data: Option<PathBuf>,
    /// Of JSON lines, the field that holds the text [default: text]
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    field: Option<String>,
    /// Folder of tokenised texts, or `off` [default: the user's cache folder]
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    cache: Option<PathBuf>,
    /// A text to measure on [default: a part of the data is held back]
    #[arg(long, value_name = "FILE|DIR", help_heading = "Data")]
    valid: Option<PathBuf>,
    /// Seed of initialisation, shuffling and stochastic rounding [default: 0]
    #[arg(long, help_heading = "Optimiser")]
    seed: Option<u64>,
    /// Optimiser steps of the whole run [default: 1000]
    #[arg(long, help_heading = "Optimiser")]
    steps: Option<u64>,
    /// Sequences in one pass [default: 16]
    #[arg(long, help_heading = "Optimiser")]
    batch: Option<usize>,
    /// Passes whose gradients one optimiser step averages [default: 1]
    #[arg(long, value_name = "PASSES", help_heading = "Optimiser")]
    accumulate: Option<usize>,
    /// Shorten the true gradient of the mean loss to this norm over all parameters
    #[arg(long, value_name = "NORM", allow_negative_numbers = true, help_heading = "Optimiser")]
    clip: Option<f64>,
    /// adamw, adam, lion or sgd [default: adamw]
    #[arg(long, help_heading = "Optimiser")]
    optimizer: Option<String>,
    /// Decay of the first moment, or momentum [default: 0.9]
    #[arg(long, value_name = "DECAY", allow_negative_numbers = true, help_heading = "Optimiser")]
    beta1: Option<f64>,
    /// Decay of the second moment, of Lion's moment [default: 0.99]
    #[arg(long, value_name = "DECAY", allow_negative_numbers = true, help_heading = "Optimiser")]
    beta2: Option<f64>,
    /// Peak learning rate [default: one that suits parametrisation and optimiser]
    #[arg(long, allow_negative_numbers = true, help_heading = "Optimiser")]
    lr: Option<f64>,
    /// Decay after the warm-up [default: cosine]
    #[arg(long, value_enum, help_heading = "Optimiser")]
    schedule: Option<DecayName>,
    /// Steps of linear warm-up [default: a tenth of the run, at most 100]
    #[arg(long, value_name = "STEPS", help_heading = "Optimiser")]
    warmup: Option<u64>,
    /// Last learning rate as a fraction of the peak [default: 0.1]
    #[arg(
        long,
        value_name = "FRACTION",
        allow_negative_numbers = true,
        help_heading = "Optimiser"
    )]
    final_lr_fraction: Option<f64>,
    /// Decay of weights per unit of learning rate [default: 0]
    #[arg(long, allow_negative_numbers = true, help_heading = "Optimiser")]
    weight_decay: Option<f64>,
    /// Steps between evaluations, 0 for the end alone [default: 100]
    #[arg(long, value_name = "STEPS", help_heading = "While it trains")]
    eval_every: Option<u64>,
    /// Batches of one evaluation [default: 16]
    #[arg(long, value_name = "BATCHES", help_heading = "While it trains")]
    eval_batches: Option<usize>,
    /// End the run after so many evaluations without a lower loss, 0 for never [default: 0]
    #[arg(long, value_name = "EVALUATIONS", help_heading = "While it trains")]
    patience: Option<u64>,
    /// Steps between samples of text, 0 for none [default: 0]
    #[arg(long, value_name = "STEPS", help_heading = "While it trains")]
    sample_every: Option<u64>,
    /// The text that samples continue [default: none]
    #[arg(long, value_name = "TEXT", help_heading = "While it trains")]
    sample_prompt: Option<String>,
    /// Steps between checkpoints, 0 for the end alone [default: 200]
    #[arg(long, value_name = "STEPS", help_heading = "While it trains")]
    save_every: Option<u64>,
    /// Checkpoints that are kept [default: 3]
    #[arg(long, help_heading = "While it trains")]
    keep: Option<usize>,
    /// One of `onesigma backends` [default: cpu]
    #[arg(long, help_heading = "Where it runs")]
    backend: Option<String>,
    /// Which device of the backend: its number in `onesigma backends` or a part of its name, for
    /// backends that list several
    #[arg(long, help_heading = "Where it runs")]
    device: Option<String>,
    /// Steps that one call of the engine takes at most [default: 10]
    #[arg(long, value_name = "STEPS", help_heading = "Where it runs")]
    steps_per_call: Option<u64>,
    /// Memory that the program may take, such as 512MiB: what does not fit is recomputed, with equal
    /// results [default: as much as it takes]
    #[arg(long, value_name = "SIZE", help_heading = "Where it runs")]
    memory: Option<Budget>,
}

/// Names of [`Decay`] on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum DecayName {
    Constant,
    Linear,
    Cosine,
}

impl Settings {
    /// The configuration that the flags and the file make, checked.
    pub fn config(&self) -> Result<Config> {
        let (table, origin) = self.table()?;
        self.over(run_file::config(table, &origin)?)
    }

    /// Whether nothing says how long sequences are.
    pub fn is_seq_open(&self) -> Result<bool> {
        let (table, _) = self.table()?;
        let named = table.get("model").and_then(|model| model.get("seq"));
        Ok(self.seq.is_none() && named.is_none())
    }

    /// The run file with `--set` over it, and what to call it in messages.
    fn table(&self) -> Result<(toml::Table, String)> {
        let mut table = toml::Table::new();
        let mut origin = "--set".to_owned();
        if let Some(path) = self.file.as_ref().or(self.config.as_ref()) {
            table = run_file::read(path)?;
            if self.set.is_empty() {
                origin = path.to_string_lossy().into_owned();
            }
        }
        for setting in &self.set {
            run_file::set(&mut table, setting)?;
        }
        Ok((table, origin))
    }

    /// The configuration of a run that is continued with other flags.
    ///
    /// # Errors
    /// For a run file, and for a setting that a run has for good.
    pub fn continued(&self, config: &Config) -> Result<Config> {
        if let Some(path) = self.file.as_ref().or(self.config.as_ref()) {
            return Err(Error::Setting {
                name: "a run file beside --resume",
                given: path.display().to_string(),
                expected: "none: a run has its own settings".into(),
            }
            .into());
        }
        let table = |config: &Config| {
            toml::Table::try_from(config).context("the run's settings have no TOML form")
        };
        // The default warm-up follows from the length; that of a run stays what it was.
        let pinned = Config { warmup: Some(config.warmup_steps()), ..config.clone() };
        let mut changed = table(&pinned)?;
        for setting in &self.set {
            run_file::set(&mut changed, setting)?;
        }
        let changed = self.over(run_file::config(changed, "--set")?)?;
        if changed == pinned {
            return Ok(config.clone());
        }
        let mut continued = pinned;
        continued.continue_as(&changed);
        if continued == changed {
            return Ok(continued);
        }
        let (own, wanted) = (table(&continued)?, table(&changed)?);
        let key = wanted.iter().find(|(key, value)| own.get(*key) != Some(value));
        let key = key.map_or("a setting".to_owned(), |(key, _)| format!("`{key}`"));
        Err(Error::Setting {
            name: "--resume",
            given: format!("with another {key}"),
            expected: "only another length, or other evaluations, checkpoints and samples; start \
                       another run with `onesigma train RUN/config.toml`, and `--init-from RUN` to \
                       begin with its weights"
                .into(),
        }
        .into())
    }

    /// The flags over a configuration, checked.
    fn over(&self, mut config: Config) -> Result<Config> {
        let Config { model, .. } = &mut config;
        set(&mut model.layers, self.layers);
        set(&mut model.heads, self.heads);
        set(&mut model.hidden, self.hidden);
        set(&mut model.seq, self.seq);
        if let Some(name) = &self.model_type {
            config.model_type = named("model type", name, &ModelType::NAMES)?;
        }
        if let Some(name) = &self.task {
            config.task = Some(named("task", name, &Task::NAMES)?);
        }
        if let Some(path) = &self.init_from {
            config.init_from = Some(data_name(path));
        }
        if let Some(name) = self.tokenizer.as_ref().or(config.tokenizer.as_ref()) {
            let is_path = !["bytes", "wordpiece"].contains(&name.as_str());
            config.tokenizer =
                Some(if is_path { data_name(Path::new(name)) } else { name.clone() });
        }
        set(&mut config.vocabulary, self.vocabulary);
        set(&mut config.recipe, self.recipe.clone());
        config.parametrisation = self.parametrisation.or(config.parametrisation);
        set(&mut config.backend, self.backend.clone());
        if let Some(device) = &self.device {
            let name = config.backend.split(':').next().unwrap_or_default();
            config.backend = format!("{name}:{device}");
        }
        set(&mut config.data, self.data.as_deref().map(data_name));
        config.valid = self.valid.as_deref().map(data_name).or(config.valid);
        set(&mut config.field, self.field.clone());
        if let Some(folder) = &self.cache {
            let is_off = folder.as_os_str() == super::text::OFF;
            config.cache = Some(if is_off { super::text::OFF.into() } else { data_name(folder) });
        }
        set(&mut config.seed, self.seed);
        set(&mut config.steps, self.steps);
        set(&mut config.batch, self.batch);
        set(&mut config.accumulate, self.accumulate);
        set(&mut config.optimizer, self.optimizer.clone());
        set(&mut config.beta1, self.beta1);
        set(&mut config.beta2, self.beta2);
        set(&mut config.patience, self.patience);
        set(&mut config.sample_every, self.sample_every);
        set(&mut config.sample_prompt, self.sample_prompt.clone());
        config.clip = self.clip.or(config.clip);
        config.master_weight = self.master_weight.or(config.master_weight);
        config.first_moment = self.first_moment.or(config.first_moment);
        config.second_moment = self.second_moment.or(config.second_moment);
        set(&mut config.final_lr_fraction, self.final_lr_fraction);
        set(&mut config.weight_decay, self.weight_decay);
        set(&mut config.eval_every, self.eval_every);
        set(&mut config.eval_batches, self.eval_batches);
        set(&mut config.save_every, self.save_every);
        set(&mut config.keep, self.keep);
        set(&mut config.steps_per_call, self.steps_per_call);
        config.lr = self.lr.or(config.lr);
        config.loss_scale = self.loss_scale.or(config.loss_scale);
        config.memory = self.memory.or(config.memory);
        config.warmup = self.warmup.or(config.warmup);
        config.strict |= self.strict;
        let decay = self.schedule.map(|name| match name {
            DecayName::Constant => Decay::Constant,
            DecayName::Linear => Decay::Linear,
            DecayName::Cosine => Decay::Cosine,
        });
        set(&mut config.schedule, decay);
        let paths = [Some(&mut config.data), config.valid.as_mut(), config.init_from.as_mut()];
        for path in paths.into_iter().flatten() {
            *path = data_name(Path::new(path));
        }
        config.validate()?;
        Ok(config)
    }
}

/// The value with a name.
fn named<T: Copy>(kind: &'static str, name: &str, known: &[(&'static str, T)]) -> Result<T> {
    let found = known.iter().find(|(own, _)| *own == name);
    let known = || known.iter().map(|(own, _)| *own).collect::<Vec<_>>().join(", ");
    let unknown = || Error::Unknown { kind, given: name.into(), known: known() };
    Ok(found.map(|(_, value)| *value).ok_or_else(unknown)?)
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

/// A path as the configuration keeps it: absolute, so that the run can be continued from
/// elsewhere; `cargo` is a name.
fn data_name(path: &Path) -> String {
    if path == Path::new("cargo") {
        return "cargo".into();
    }
    std::path::absolute(path).unwrap_or_else(|_| path.into()).to_string_lossy().into_owned()
}
