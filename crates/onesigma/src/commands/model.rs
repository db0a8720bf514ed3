//! Models on the disk: a run folder, a checkpoint file, or a Hugging Face folder.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use onesigma::models::{BertTask, Model, Pretrained, Tensor};
use onesigma::ops::Parametrisation;
use onesigma::setup;
use onesigma::train::bert::head;
use onesigma::train::checkpoint::Checkpoint;
use onesigma::train::config::{Config, ModelConfig, ModelType};
use onesigma::train::model::Gpt;
use onesigma::train::session::Session;
use onesigma::train::task::Task;
use onesigma::train::tokenizer::{Bytes, Subwords};
use onesigma::train::{Error, checkpoint};

use super::prepare::{parametrisation, tokenizer_of_run};
use super::source;

/// Longest sequence that a model from a Hugging Face folder is compiled for, if nothing is said.
const SEQ: usize = 512;

/// A model with its tokeniser.
pub struct Opened {
    /// Architecture and weights; heads of `new` are 0.
    pub pretrained: Pretrained,
    /// Names of head parameters that the source does not have.
    pub new: Vec<String>,
    /// The tokeniser, unless it is that of bytes.
    pub pieces: Option<Subwords>,
    /// The run's configuration, or one that fits the model.
    pub config: Config,
    /// Steps that it was trained for, as far as is known.
    pub step: Option<u64>,
    /// The whole state of a run.
    checkpoint: Option<Checkpoint>,
}

/// Whether a path is a folder of Hugging Face's form.
pub fn is_hugging_face(path: &Path) -> bool {
    path.join("config.json").is_file()
}

/// Opens a model; `task` gives a BERT the heads of another task than its own.
pub fn open(path: &Path, task: Option<Task>) -> Result<Opened> {
    if is_hugging_face(path) { open_folder(path, task) } else { open_run(path, task) }
}

fn open_folder(path: &Path, task: Option<Task>) -> Result<Opened> {
    let (mut pretrained, new) = match task.map(head) {
        Some(Ok(task)) => {
            let found =
                Pretrained::load_for(path, task).with_context(|| path.display().to_string())?;
            (found.pretrained, found.new)
        }
        _ => (Pretrained::load(path).with_context(|| path.display().to_string())?, Vec::new()),
    };
    fill(&mut pretrained, &new)?;
    let files = ["tokenizer.json", "vocab.txt"].map(|name| path.join(name));
    let pieces = match files.iter().find(|file| file.is_file()) {
        Some(file) => Some(Subwords::from_path(file, true)?),
        None => None,
    };
    let mut config = config_of(&pretrained);
    config.tokenizer = pieces.is_some().then(|| path.display().to_string());
    Ok(Opened { pretrained, new, pieces, config, step: None, checkpoint: None })
}

/// A configuration in f32 that fits a model.
fn config_of(pretrained: &Pretrained) -> Config {
    let recipe = match pretrained.parametrisation {
        Parametrisation::Regular => "f32".to_owned(),
        p => format!("{p}-f32"),
    };
    let seq = pretrained.model.positions().min(SEQ);
    let mut config = Config { recipe, batch: 8, ..Config::default() };
    match &pretrained.model {
        Model::Gpt(gpt) => {
            let (layers, heads, hidden) = (gpt.n_layer, gpt.n_head, gpt.n_embd);
            config.model = ModelConfig { layers, heads, hidden, seq, ..ModelConfig::default() };
            config.gpt = Some(gpt.clone());
        }
        Model::Bert { config: bert, task } => {
            let (layers, heads) = (bert.num_hidden_layers, bert.num_attention_heads);
            let hidden = bert.hidden_size;
            config.model = ModelConfig { layers, heads, hidden, seq, ..ModelConfig::default() };
            config.model_type = ModelType::Bert;
            config.task = Some(task_of(*task));
            config.bert = Some(bert.clone());
        }
    }
    config
}

/// The task that heads are for; an encoder has none, and masked tokens stand for it.
fn task_of(task: BertTask) -> Task {
    match task {
        BertTask::PreTraining => Task::PreTraining,
        BertTask::Classification => Task::Classification,
        BertTask::Span => Task::Span,
        _ => Task::MaskedLm,
    }
}

fn open_run(path: &Path, task: Option<Task>) -> Result<Opened> {
    let checkpoint = source::checkpoint(path)?;
    let config = source::config(&checkpoint)?;
    let p = parametrisation(&config)?;
    let model = match config.model_type {
        ModelType::Bert => Model::Bert {
            config: config.bert_architecture(),
            task: head(task.unwrap_or(config.task()))?,
        },
        _ => {
            let derived = || Gpt::architecture(&config.model, Bytes::VOCABULARY, p);
            Model::Gpt(config.gpt.clone().unwrap_or_else(derived))
        }
    };
    let specs = model.parameters(p)?;
    let mut pretrained = Pretrained { model, parametrisation: p, weights: BTreeMap::new() };
    let mut new = Vec::new();
    for spec in specs {
        match checkpoint.tensors.iter().find(|tensor| tensor.name == spec.name) {
            Some(tensor) => {
                let values = values(tensor)?;
                let shape = tensor.shape.clone();
                pretrained.weights.insert(spec.name, Tensor { shape, values });
            }
            None if task.is_some() => new.push(spec.name),
            None => return Err(missing(&spec.name, path)),
        }
    }
    fill(&mut pretrained, &new)?;
    pretrained.check()?;
    let pieces = tokenizer_of_run(path)?;
    let step = Some(checkpoint.state.step);
    Ok(Opened { pretrained, new, pieces, config, step, checkpoint: Some(checkpoint) })
}

fn missing(name: &str, path: &Path) -> anyhow::Error {
    Error::CheckpointMismatch {
        what: format!("tensor `{name}`"),
        found: "missing".into(),
        expected: format!("the whole model in {}", path.display()),
    }
    .into()
}

fn values(tensor: &checkpoint::Tensor) -> Result<Vec<f32>> {
    let unreadable = || Error::CheckpointMismatch {
        what: format!("tensor `{}`", tensor.name),
        found: tensor.format.clone(),
        expected: "a format of floats".into(),
    };
    Ok(tensor.to_f32().ok_or_else(unreadable)?)
}

/// Zeros for heads that are not there yet; anything else has to be.
fn fill(pretrained: &mut Pretrained, new: &[String]) -> Result<()> {
    let specs = pretrained.model.parameters(pretrained.parametrisation)?;
    for spec in specs.into_iter().filter(|spec| new.contains(&spec.name)) {
        let heads = ["cls.", "classifier.", "qa_outputs.", "bert.pooler."];
        if !heads.iter().any(|head| spec.name.starts_with(head)) {
            return Err(onesigma::models::Error::MissingTensor { name: spec.name }.into());
        }
        let shape = spec.shape.dims().to_vec();
        let values = vec![0.0; spec.shape.numel()];
        pretrained.weights.insert(spec.name, Tensor { shape, values });
    }
    Ok(())
}

impl Opened {
    /// The model in a parametrisation.
    pub fn converted(mut self, to: Parametrisation) -> Result<Self> {
        self.pretrained = self.pretrained.convert(to)?.model;
        Ok(self)
    }

    /// The weights by name, without heads that are new.
    pub fn values(&self) -> BTreeMap<String, Vec<f32>> {
        let weights = self.pretrained.weights.iter();
        weights
            .filter(|(name, _)| !self.new.contains(name))
            .map(|(name, tensor)| (name.clone(), tensor.values.clone()))
            .collect()
    }

    /// A session in the state of the run, or with the weights of the folder. `config` may differ
    /// from the model's own in what does not change its state.
    pub fn session(&self, config: &Config) -> Result<Session> {
        if let Some(checkpoint) = &self.checkpoint {
            return source::session(config, checkpoint);
        }
        let mut session = setup::session(config)?;
        session.init(config.seed)?;
        let stayed = session.load(&self.values())?;
        match stayed.into_iter().next() {
            Some(name) => Err(onesigma::models::Error::MissingTensor { name }.into()),
            None => Ok(session),
        }
    }
}
