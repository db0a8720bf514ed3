//! From a configuration to its data, tokeniser and first weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use onesigma::models::Model;
use onesigma::ops::{Parametrisation, recipes};
use onesigma::train::Error;
use onesigma::train::config::{Config, ModelConfig, ModelType};
use onesigma::train::model::Gpt;
use onesigma::train::session::Session;
use onesigma::train::task::{Data, Examples, Questions, Task};
use onesigma::train::tokenizer::Subwords;

use super::source::Units;
use super::{model, source, text};

/// File of a run folder that holds its tokeniser.
pub const TOKENIZER: &str = "tokenizer.json";

/// A configuration with nothing left open, and what it is about.
pub struct Prepared {
    /// Architecture and vocabulary are set.
    pub config: Config,
    /// Batches.
    pub data: Data,
    /// The tokeniser, unless it is that of bytes.
    pub pieces: Option<Subwords>,
    /// Weights to start from.
    pub weights: Option<Weights>,
}

/// Weights by the names of parameters, in the model's own parametrisation.
pub struct Weights {
    values: BTreeMap<String, Vec<f32>>,
    /// Parameters of heads that start anew.
    new: Vec<String>,
    origin: String,
}

/// What a configuration starts from.
struct Start {
    /// The architecture of the weights.
    model: Model,
    /// The configuration of the model that they come from.
    old: Config,
    pieces: Option<Subwords>,
    weights: Weights,
}

/// Reads what a configuration names. `run` is the run folder, if it exists already: then its
/// tokeniser is used.
pub fn prepare(config: Config, run: Option<&Path>) -> Result<Prepared> {
    prepare_with(config, run, false)
}

/// [`prepare`]; with `is_seq_open` sequences are as long as those of what a run starts from.
pub fn prepare_with(mut config: Config, run: Option<&Path>, is_seq_open: bool) -> Result<Prepared> {
    let start = match &config.init_from {
        Some(path) => Some(start(path, &config)?),
        None => None,
    };
    let p = parametrisation(&config)?;
    let mut pieces = match run {
        Some(root) => tokenizer_of_run(root)?,
        None => None,
    };
    if let Some(start) = &start {
        let own = start.old.model.seq;
        if is_seq_open && own != config.model.seq {
            eprintln!("sequences of {own} tokens, as in {}", start.weights.origin);
            config.model.seq = own;
        }
        adopt(&mut config, &start.old, &start.model)?;
        pieces = pieces.or_else(|| start.pieces.clone());
    }
    let data = match config.task() {
        Task::LanguageModel => {
            let text = text::read(&config, pieces.take())?;
            pieces = text.pieces;
            if let Some(pieces) = &pieces {
                let size = pieces.vocabulary();
                let derived = || Gpt::architecture(&config.model, size, p);
                let mut gpt = config.gpt.clone().unwrap_or_else(derived);
                gpt.vocab_size = size;
                config.gpt = Some(gpt);
            }
            Data::language_model(&config, text.training, text.validation, text.sha256)?
        }
        Task::MaskedLm | Task::PreTraining => {
            let corpus = source::corpus(&config, Units::Characters)?;
            let training = String::from_utf8_lossy(&corpus.training);
            let own = own_pieces(&mut config, pieces.take(), || training.lines())?;
            let data = Data::masked(&config, &corpus, &own)?;
            pieces = Some(own);
            data
        }
        Task::Classification => {
            let mut examples = Examples::from_path(Path::new(&config.data))?;
            let texts = || {
                examples.training.iter().flat_map(|one| {
                    std::iter::once(one.first.as_str()).chain(one.second.as_deref())
                })
            };
            let own = own_pieces(&mut config, pieces.take(), texts)?;
            if let Some(bert) = &mut config.bert {
                match bert.id2label.clone().filter(|_| run.is_some()) {
                    Some(classes) => examples.renumber(&classes)?,
                    None => bert.id2label = Some(examples.id2label()),
                }
                bert.num_labels = None;
            }
            let data = Data::classification(&config, &examples, &own)?;
            pieces = Some(own);
            data
        }
        Task::Span => {
            let questions = Questions::from_path(Path::new(&config.data))?;
            let texts = || {
                let texts = questions.training.iter();
                texts.flat_map(|one| [one.question.as_str(), one.context.as_str()])
            };
            let own = own_pieces(&mut config, pieces.take(), texts)?;
            let data = Data::span(&config, &questions, &own)?;
            pieces = Some(own);
            data
        }
        other => anyhow::bail!("no data for the task {}", other.name()),
    };
    Ok(Prepared { config, data, pieces, weights: start.map(|start| start.weights) })
}

/// The tokeniser of an encoder: what there is already, or what the configuration says; and its
/// architecture, with that vocabulary.
fn own_pieces<'a, I: Iterator<Item = &'a str> + Send>(
    config: &mut Config,
    pieces: Option<Subwords>,
    texts: impl Fn() -> I,
) -> Result<Subwords> {
    let pieces = match pieces {
        Some(pieces) => pieces,
        None => {
            let name = config.tokenizer.clone().unwrap_or_else(|| "wordpiece".into());
            tokenizer(config, &name, texts())?
        }
    };
    let mut bert = config.bert_architecture();
    let is_given = config.bert.is_some();
    if is_given && bert.vocab_size < pieces.vocabulary() {
        return Err(Error::Setting {
            name: "tokenizer",
            given: format!("one of {} tokens", pieces.vocabulary()),
            expected: format!("at most the {} rows of the model's table", bert.vocab_size),
        }
        .into());
    }
    if !is_given {
        bert.vocab_size = pieces.vocabulary();
    }
    bert.pad_token_id = pieces.special()?.pad;
    config.bert = Some(bert);
    Ok(pieces)
}

/// A tokeniser by its name in a configuration; `wordpiece` is learned from texts.
pub fn tokenizer<'a>(
    config: &Config,
    name: &str,
    texts: impl Iterator<Item = &'a str> + Send,
) -> Result<Subwords> {
    Ok(match name {
        "wordpiece" => Subwords::train(texts, config.vocabulary, true)?,
        "bytes" => {
            return Err(Error::Setting {
                name: "--tokenizer",
                given: "bytes".into(),
                expected: "wordpiece or a file, for model type bert".into(),
            }
            .into());
        }
        path => Subwords::from_path(Path::new(path), true)?,
    })
}

/// The tokeniser that a run keeps, if it has one; `path` is the run folder or a checkpoint in it.
pub fn tokenizer_of_run(path: &Path) -> Result<Option<Subwords>> {
    let above = |levels| path.ancestors().nth(levels).map(|folder| folder.join(TOKENIZER));
    let candidates: [Option<PathBuf>; 2] = [above(0), above(2)];
    let found = candidates.into_iter().flatten().find(|file| file.is_file());
    Ok(found.map(|file| Subwords::from_path(&file, true)).transpose()?)
}

/// The parametrisation of a configuration's recipe.
pub fn parametrisation(config: &Config) -> Result<Parametrisation> {
    let of_recipe = || -> Result<Parametrisation, Error> {
        Ok(recipes::parametrisation(&recipes::load(&config.recipe)?))
    };
    Ok(config.parametrisation.map_or_else(of_recipe, Ok)?)
}

/// Reads what a configuration starts from, in its own parametrisation.
fn start(path: &str, config: &Config) -> Result<Start> {
    let task = (config.model_type == ModelType::Bert).then(|| config.task());
    let mut opened = model::open(Path::new(path), task)?;
    let own = parametrisation(config)?;
    if opened.pretrained.parametrisation != own {
        opened = opened.converted(own)?;
    }
    let weights = Weights { values: opened.values(), new: opened.new, origin: path.into() };
    Ok(Start { model: opened.pretrained.model, old: opened.config, pieces: opened.pieces, weights })
}

/// Takes over the architecture that weights are for.
fn adopt(config: &mut Config, old: &Config, model: &Model) -> Result<()> {
    if config.model_type != old.model_type {
        let name = |kind: ModelType| {
            let found = ModelType::NAMES.into_iter().find(|(_, own)| *own == kind);
            found.map_or("", |(name, _)| name)
        };
        return Err(Error::Setting {
            name: "--init-from",
            given: format!("a model of type {}", name(old.model_type)),
            expected: name(config.model_type).into(),
        }
        .into());
    }
    config.model = ModelConfig { seq: config.model.seq, ..old.model.clone() };
    match model {
        Model::Gpt(gpt) => config.gpt = Some(gpt.clone()),
        Model::Bert { config: bert, .. } => config.bert = Some(bert.clone()),
    }
    Ok(())
}

impl Weights {
    /// Puts the weights into a session; says which parameters are new.
    pub fn load(&self, session: &mut Session) -> Result<()> {
        let stayed = session.load(&self.values).with_context(|| format!("in {}", self.origin))?;
        if let Some(name) = stayed.iter().find(|name| !self.new.contains(name)) {
            return Err(Error::CheckpointMismatch {
                what: format!("tensor `{name}`"),
                found: "missing".into(),
                expected: format!("one of the model in {}", self.origin),
            }
            .into());
        }
        if !stayed.is_empty() {
            eprintln!("new: {}", stayed.join(", "));
        }
        Ok(())
    }
}
