//! From a configuration to a compiled session.

use onesigma_backend::Backend;
use onesigma_graph::Recipe;
use onesigma_ops::recipes;
use onesigma_train::Result;
use onesigma_train::batch::Batch;
use onesigma_train::bert::Bert;
use onesigma_train::checkpoint::Tensor;
use onesigma_train::config::Config;
use onesigma_train::config::ModelType;
use onesigma_train::model::Gpt;
use onesigma_train::program::{self, Model, Settings, Target, TrainingProgram};
use onesigma_train::session::{self, Flushed, Session};
use onesigma_train::tokenizer::Bytes;

use crate::backends;

/// Peak learning rate of a unit-scaled model, times each parameter's own factor; best of 0.25,
/// 0.5, 1, 2 on the default model and corpus.
const UNIT_SCALED_RATE: f64 = 0.5;
/// Peak learning rate of a regular model; best of 0.001, 0.003, 0.01 there.
const REGULAR_RATE: f64 = 0.003;

/// What a configuration names: its recipe, model, sizes and backend.
struct Parts {
    recipe: Recipe,
    model: Box<dyn Model>,
    settings: Settings,
    backend: Box<dyn Backend>,
    strict: bool,
}

impl Parts {
    fn new(config: &Config) -> Result<Self> {
        let recipe = recipes::load(&config.recipe)?;
        let (model, vocabulary) = model(config, &recipe)?;
        let settings = Settings {
            batch: config.batch,
            seq: config.model.seq,
            vocabulary,
            accumulate: config.accumulate,
            optimizer: config.optimizer()?,
        };
        let backend = backends::open(&config.backend)?;
        Ok(Self { recipe, model, settings, backend, strict: config.strict })
    }

    fn program(&self) -> Result<TrainingProgram> {
        let supports = |op: &_, inputs: &[_], output| self.backend.supports(op, inputs, output);
        let target = Target { supports: &supports, strict: self.strict };
        program::build(&*self.model, &self.recipe, self.settings, target)
    }
}

/// The model of a configuration, and the size of its vocabulary.
fn model(config: &Config, recipe: &Recipe) -> Result<(Box<dyn Model>, usize)> {
    let p = recipes::parametrisation(recipe);
    if config.model_type == ModelType::Bert {
        let bert = config.bert_architecture();
        let vocabulary = bert.vocab_size;
        let model = Bert::new(bert, config.task(), p, config.mask_probability)?;
        return Ok((Box::new(model), vocabulary));
    }
    let gpt = config.gpt.clone();
    let gpt = gpt.unwrap_or_else(|| Gpt::architecture(&config.model, Bytes::VOCABULARY, p));
    let vocabulary = gpt.vocab_size;
    Ok((Box::new(Gpt::from_config(gpt, p)?), vocabulary))
}

/// The peak learning rate of a configuration that names none; a tenth of it where weights are
/// not new.
///
/// # Errors
/// [`Error::Ops`](onesigma_train::Error::Ops) for an unknown recipe.
pub fn default_rate(config: &Config) -> Result<f64> {
    let recipe = recipes::load(&config.recipe)?;
    let scaled = recipes::parametrisation(&recipe).is_scaled();
    let rate = if scaled { UNIT_SCALED_RATE } else { REGULAR_RATE };
    Ok(if config.init_from.is_some() { rate / 10.0 } else { rate })
}

/// The planned program of a configuration.
///
/// # Errors
/// [`Error`](onesigma_train::Error) for an unknown recipe or backend, sizes that make no model,
/// or an op that the backend cannot run.
pub fn program(config: &Config) -> Result<TrainingProgram> {
    Parts::new(config)?.program()
}

/// A session whose state is still zero: initialise or restore it.
///
/// # Errors
/// As [`program()`], and if the backend refuses the program.
pub fn session(config: &Config) -> Result<Session> {
    let parts = Parts::new(config)?;
    let program = parts.program()?;
    let engine = parts.backend.compile(&program.program)?;
    Ok(Session::new(program, engine))
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
