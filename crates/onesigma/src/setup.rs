//! From a configuration to a compiled session.

use std::collections::BTreeMap;
use std::time::Instant;

use onesigma_backend::{Backend, Device};
use onesigma_graph::Recipe;
use onesigma_graph::recipe::Scaling;
use onesigma_ops::{Parametrisation, recipes};
use onesigma_train::batch::Batch;
use onesigma_train::bert::Bert;
use onesigma_train::checkpoint::Tensor;
use onesigma_train::config::Config;
use onesigma_train::config::ModelType;
use onesigma_train::generator::Generator;
use onesigma_train::memory::Budget;
use onesigma_train::model::{self, Gpt};
use onesigma_train::program::{self, Model, Proven, Settings, Target, TrainingProgram};
use onesigma_train::session::{self, Flushed, Session};
use onesigma_train::tokenizer::Bytes;
use onesigma_train::{Error, Result};

use crate::backends;

/// What a configuration names: its recipe, model, sizes and backend.
pub(crate) struct Parts {
    pub(crate) recipe: Recipe,
    pub(crate) model: Box<dyn Model>,
    pub(crate) settings: Settings,
    pub(crate) backend: Box<dyn Backend>,
    strict: bool,
    memory: Option<Budget>,
}

impl Parts {
    pub(crate) fn new(config: &Config) -> Result<Self> {
        Self::on(config, || backends::open(&config.backend))
    }

    fn on(config: &Config, open: impl FnOnce() -> Result<Box<dyn Backend>>) -> Result<Self> {
        let recipe = recipe(config)?;
        let (model, vocabulary) = model(config, &recipe)?;
        let settings = Settings {
            batch: config.batch,
            seq: config.model.seq,
            vocabulary,
            accumulate: config.accumulate,
            optimizer: config.optimizer()?,
            clip: config.clip,
        };
        let backend = open()?;
        Ok(Self { recipe, model, settings, backend, strict: config.strict, memory: config.memory })
    }

    fn program(&self) -> Result<TrainingProgram> {
        let supports = |op: &_, inputs: &[_], output| self.backend.supports(op, inputs, output);
        let target = Target { supports: &supports, strict: self.strict };
        let program = program::build(&*self.model, &self.recipe, self.settings, target)?;
        match self.memory {
            Some(budget) => program.fit(budget, self.device()),
            None => Ok(program),
        }
    }

    /// What the backend's device is like: by its rates it is decided what to recompute. A
    /// description rather than a measurement, so that the program depends on the configuration
    /// alone.
    fn device(&self) -> Device {
        match self.backend.name() {
            "tch" | "wgpu" => Device::h100(),
            _ => Device::server_core(0),
        }
    }
}

/// The recipe of a configuration, with its own loss scale if it has one.
fn recipe(config: &Config) -> Result<Recipe> {
    let mut recipe = recipes::load(&config.recipe)?;
    config.add_state_formats(&mut recipe);
    if let Some(init) = config.loss_scale {
        if parametrisation(config, &recipe).is_scaled() {
            return Err(Error::Setting {
                name: "--loss-scale",
                given: init.to_string(),
                expected: "nothing with a unit-scaled recipe, whose gradients are in range".into(),
            });
        }
        recipe.scaling = Scaling::Loss { init, growth: 1.0, backoff: 1.0, interval: u32::MAX };
    }
    Ok(recipe)
}

/// The model of a configuration, and the size of its vocabulary.
fn model(config: &Config, recipe: &Recipe) -> Result<(Box<dyn Model>, usize)> {
    let p = parametrisation(config, recipe);
    if config.model_type == ModelType::Bert {
        let bert = config.bert_architecture();
        let vocabulary = bert.vocab_size;
        let model = Bert::new(bert, config.task(), p, config.mask_probability)?;
        let model = model.with_rates(&config.rates);
        return Ok((Box::new(model), vocabulary));
    }
    let gpt = config.gpt.clone();
    let gpt = gpt.unwrap_or_else(|| Gpt::architecture(&config.model, Bytes::VOCABULARY, p));
    let vocabulary = gpt.vocab_size;
    Ok((Box::new(Gpt::from_config(gpt, p)?.with_rates(&config.rates)), vocabulary))
}

/// The peak learning rate of a configuration that names none; a tenth of it where weights are
/// not new.
///
/// # Errors
/// [`Error::Ops`] for an unknown recipe.
pub fn default_rate(config: &Config) -> Result<f64> {
    let p = parametrisation(config, &recipes::load(&config.recipe)?);
    let rate = model::default_rate(p, &config.optimizer()?);
    Ok(if config.init_from.is_some() { rate / 10.0 } else { rate })
}

/// The configuration's own parametrisation, or that of its recipe.
fn parametrisation(config: &Config, recipe: &Recipe) -> Parametrisation {
    config.parametrisation.unwrap_or_else(|| recipes::parametrisation(recipe))
}

/// The planned program of a configuration.
///
/// # Errors
/// [`Error`] for an unknown recipe or backend, sizes that make no model,
/// or an op that the backend cannot run.
pub fn program(config: &Config) -> Result<TrainingProgram> {
    Parts::new(config)?.program()
}

/// By which constant each parameter's gradient differs from the true one, proved for the model of
/// a configuration.
///
/// # Errors
/// As [`program()`]; [`Error::Ops`] with the edge that breaks the
/// cut-edge rule.
pub fn prove(config: &Config) -> Result<Vec<Proven>> {
    let Parts { model, recipe, settings, .. } = Parts::new(config)?;
    program::prove(&*model, &recipe, settings)
}

/// A session whose state is still zero: initialise or restore it, or let a
/// [`Trainer`](onesigma_train::trainer::Trainer) do so.
///
/// ```
/// use std::sync::atomic::AtomicBool;
///
/// use onesigma::setup;
/// use onesigma::train::checkpoint::Checkpoint;
/// use onesigma::train::config::{Config, ModelConfig};
/// use onesigma::train::corpus::{Corpus, Document};
/// use onesigma::train::run_dir::RunDir;
/// use onesigma::train::trainer::Trainer;
///
/// let model = ModelConfig { layers: 1, heads: 2, hidden: 16, seq: 16, ..ModelConfig::default() };
/// let config = Config { recipe: "unit-fp8".into(), steps: 3, batch: 2, model, ..Config::default() };
/// let text = "The quick brown fox jumps over the lazy dog. ".repeat(20).into_bytes();
/// let document = Document { name: "fox".into(), text };
/// let corpus = Corpus::from_documents("fox", vec![document], Vec::new());
///
/// let (session, rate) = (setup::session(&config)?, setup::default_rate(&config)?);
/// let mut trainer = Trainer::new(session, &config, rate, &corpus)?;
/// # let folder = tempfile::tempdir()?;
/// # let folder = folder.path().join("run");
/// let mut run = RunDir::create(&folder, &config)?;
/// let summary = trainer.run(&mut run, &mut (), &AtomicBool::new(false))?;
/// assert_eq!(summary.steps, 3);
/// // The run folder has what it needs to go on, and to be looked at.
/// let (_, checkpoint, _) = Checkpoint::latest(&run.checkpoints())?;
/// assert_eq!(checkpoint.state.step, 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// As [`program()`], and if the backend refuses the program.
pub fn session(config: &Config) -> Result<Session> {
    compile(config, Parts::new(config)?)
}

/// As [`session()`], on a backend of the caller's: the configuration's own is not looked at.
///
/// # Errors
/// As [`session()`].
pub fn session_on(config: &Config, backend: Box<dyn Backend>) -> Result<Session> {
    compile(config, Parts::on(config, || Ok(backend))?)
}

fn compile(config: &Config, parts: Parts) -> Result<Session> {
    let started = Instant::now();
    let program = parts.program()?;
    let planned = started.elapsed();
    let engine = parts.backend.compile(&program.program)?;
    tracing::info!(
        recipe = config.recipe,
        backend = parts.backend.name(),
        parameters = program.parameter_count,
        arena_bytes = program.program.arena_bytes(),
        ?planned,
        compiled = ?started.elapsed() - planned,
        "program"
    );
    for rewrite in &program.rewrites {
        tracing::debug!(%rewrite, "rewritten for the backend");
    }
    Ok(Session::new(program, engine))
}

/// What writes text with the model of a configuration and parameters by name: only their forward
/// pass is compiled, with a cache of keys and values.
///
/// ```
/// use onesigma::setup;
/// use onesigma::train::config::{Config, ModelConfig};
/// use onesigma::train::generate::{Sampling, generate};
///
/// let model = ModelConfig { layers: 1, heads: 1, hidden: 8, seq: 16, ..ModelConfig::default() };
/// let config = Config { recipe: "unit-fp8".into(), batch: 1, model, ..Config::default() };
/// let mut session = setup::session(&config)?;
/// session.init(1)?;
/// let state = session.state()?;
/// let weights = state.iter().filter_map(|t| Some((t.name.clone(), t.to_f32()?))).collect();
///
/// let mut model = setup::generator(&config, &weights)?;
/// let sampling = Sampling { temperature: 0.8, top_k: 40, seed: 1 };
/// let mut text = Vec::new();
/// generate(&mut model, &[72, 105], 10, sampling, |token| {
///     text.push(token);
///     true
/// })?;
/// assert_eq!((text.len(), model.reads().windows, model.reads().tokens), (10, 1, 9));
/// # Ok::<(), onesigma::train::Error>(())
/// ```
///
/// # Errors
/// As [`session()`]; [`Error::Setting`] for a model that predicts no next token;
/// [`Error::CheckpointMismatch`] for parameters of another model.
pub fn generator(config: &Config, values: &BTreeMap<String, Vec<f32>>) -> Result<Generator> {
    compile_generator(config, Parts::new(config)?, values)
}

/// As [`generator()`], on a backend of the caller's: the configuration's own is not looked at.
///
/// # Errors
/// As [`generator()`].
pub fn generator_on(
    config: &Config,
    backend: Box<dyn Backend>,
    values: &BTreeMap<String, Vec<f32>>,
) -> Result<Generator> {
    compile_generator(config, Parts::on(config, || Ok(backend))?, values)
}

fn compile_generator(
    config: &Config,
    parts: Parts,
    values: &BTreeMap<String, Vec<f32>>,
) -> Result<Generator> {
    let started = Instant::now();
    let supports = |op: &_, inputs: &[_], output| parts.backend.supports(op, inputs, output);
    let target = Target { supports: &supports, strict: parts.strict };
    let Parts { model, recipe, settings, backend, .. } = &parts;
    let sizes = [settings.seq, settings.vocabulary];
    let program = program::build_generation(&**model, recipe, sizes, target)?;
    let engine = backend.compile(&program.program)?;
    tracing::info!(
        recipe = config.recipe,
        backend = backend.name(),
        arena_bytes = program.program.arena_bytes(),
        compiled = ?started.elapsed(),
        "program for generation"
    );
    Generator::new(program, engine, values, config.seed)
}

/// Counts the gradients that a configuration's formats flush to zero, for one batch at a state.
///
/// # Errors
/// As [`session()`].
pub fn measure(config: &Config, state: &[Tensor], batch: &Batch) -> Result<Vec<Flushed>> {
    let parts = Parts::new(config)?;
    let supports = |op: &_, inputs: &[_], output| parts.backend.supports(op, inputs, output);
    let target = Target { supports: &supports, strict: parts.strict };
    let Parts { model, recipe, settings, backend, .. } = &parts;
    let program = program::build_measuring(&**model, recipe, *settings, target)?;
    let mut engine = backend.compile(&program.program)?;
    session::measure(&program, engine.as_mut(), state, batch, config.seed)
}
