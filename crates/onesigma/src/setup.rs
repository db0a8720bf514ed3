//! From a configuration to a compiled session.

use onesigma_graph::recipe::{Recipe, Scaling};
use onesigma_train::Error;
use onesigma_train::batch::Batch;
use onesigma_train::checkpoint::Tensor;
use onesigma_train::config::Config;
use onesigma_train::program::{self, Settings, TrainingProgram};
use onesigma_train::session::{self, Flushed, Session};
use onesigma_train::tokenizer::Bytes;

use crate::gpt::Gpt;
use crate::{backends, recipes};

/// Peak learning rate of a unit-scaled model, times each parameter's own factor; best of 0.25,
/// 0.5, 1, 2 on the default model and corpus.
const UNIT_SCALED_RATE: f64 = 0.5;
/// Peak learning rate of a regular model; best of 0.001, 0.003, 0.01 there.
const REGULAR_RATE: f64 = 0.003;

fn model(config: &Config, recipe: &Recipe) -> Gpt {
    let size = &config.model;
    Gpt {
        layers: size.layers,
        heads: size.heads,
        hidden: size.hidden,
        seq: size.seq,
        vocabulary: Bytes::VOCABULARY,
        unit_scaled: recipe.scaling == Scaling::Unit,
    }
}

fn settings(config: &Config) -> Result<Settings, Error> {
    Ok(Settings {
        batch: config.batch,
        seq: config.model.seq,
        vocabulary: Bytes::VOCABULARY,
        accumulate: config.accumulate,
        optimizer: config.optimizer()?,
    })
}

/// The peak learning rate of a configuration that names none.
///
/// # Errors
/// [`Error::Unknown`] for an unknown recipe.
pub fn default_rate(config: &Config) -> Result<f64, Error> {
    let unit_scaled = recipes::by_name(&config.recipe)?.scaling == Scaling::Unit;
    Ok(if unit_scaled { UNIT_SCALED_RATE } else { REGULAR_RATE })
}

/// The planned program of a configuration.
///
/// # Errors
/// [`Error::Unknown`] for an unknown recipe, [`Error::Graph`] for sizes that make no model.
pub fn program(config: &Config) -> Result<TrainingProgram, Error> {
    let recipe = recipes::by_name(&config.recipe)?;
    Ok(program::build(&model(config, &recipe), &recipe, settings(config)?)?)
}

/// A session whose state is still zero: initialise or restore it.
///
/// # Errors
/// As [`program`]; [`Error::Unknown`] for an unknown backend; [`Error::Backend`] if it is
/// unavailable or refuses the program.
pub fn session(config: &Config) -> Result<Session, Error> {
    let backend = backends::open(&config.backend)?;
    let program = program(config)?;
    let engine = backend.compile(&program.program)?;
    Ok(Session::new(program, engine))
}

/// Counts the gradients that a configuration's formats flush to zero, for one batch at a state.
///
/// # Errors
/// As [`session`].
pub fn measure(config: &Config, state: &[Tensor], batch: &Batch) -> Result<Vec<Flushed>, Error> {
    let recipe = recipes::by_name(&config.recipe)?;
    let program = program::build_measuring(&model(config, &recipe), &recipe, settings(config)?)?;
    let mut engine = backends::open(&config.backend)?.compile(&program.program)?;
    session::measure(&program, engine.as_mut(), state, batch, config.seed)
}
