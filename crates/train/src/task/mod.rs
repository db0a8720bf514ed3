//! What a model is trained for, and the batches of each task.
//!
//! | task | tokens | targets | further inputs |
//! | --- | --- | --- | --- |
//! | language model | `[batch, seq]` | next tokens `[batch, seq]` | |
//! | masked tokens | `[batch, seq]` | true tokens `[predictions]` | `rows`, `counted` |
//! | pre-training | `[batch, seq]` | true tokens `[predictions]` | `rows`, `counted`, `segments`, `follows` |
//! | classification | `[batch, seq]` | classes `[batch]` | `segments`, `mask`, `counted` |
//! | span | `[batch, seq]` | first and last positions `[2, batch]` | `segments`, `mask`, `counted` |
//!
//! `predictions` is `batch` times [`predictions`]; `rows` are their places in `[batch seq]`;
//! `counted` is 0 for what only fills up a batch; `mask` is 0 for padding.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Error;
use crate::batch::{EvaluationBatches, Sampler, Sweep, TrainingBatches};
use crate::config::Config;
use crate::corpus::{Corpus, hex};
use crate::tokenizer::{Bytes, Subwords};
use crate::tokens::Tokens;

pub mod examples;
pub mod masking;
pub mod span;

pub use examples::{Example, Examples};
pub use masking::{MaskedBatches, Masking};
pub use span::{Question, Questions};

/// What a model is trained for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Task {
    /// The next token of a text.
    LanguageModel,
    /// Masked tokens of a text.
    MaskedLm,
    /// Masked tokens, and whether the second half of a sequence follows the first.
    PreTraining,
    /// A class for each sentence or pair of sentences.
    Classification,
    /// The answer to a question within a text.
    Span,
}

impl Task {
    /// Every task by its name on the command line.
    pub const NAMES: [(&'static str, Self); 5] = [
        ("language-model", Self::LanguageModel),
        ("masked-lm", Self::MaskedLm),
        ("pre-training", Self::PreTraining),
        ("classification", Self::Classification),
        ("span", Self::Span),
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        Self::NAMES.into_iter().find(|(_, task)| *task == self).map_or("", |(name, _)| name)
    }

    /// What its data is: text, or a file of examples.
    pub const fn reads_text(self) -> bool {
        matches!(self, Self::LanguageModel | Self::MaskedLm | Self::PreTraining)
    }
}

/// Tokens of a sequence of `seq` that are predicted, its share `probability` of what is not added
/// by BERT itself, at least one.
pub fn predictions(seq: usize, probability: f64) -> usize {
    let text = seq.saturating_sub(2).max(1);
    ((text as f64 * probability).round() as usize).clamp(1, text)
}

/// The batches of a task.
#[derive(Debug)]
pub struct Data {
    /// To train on.
    pub training: Box<dyn TrainingBatches>,
    /// To measure on.
    pub validation: Box<dyn EvaluationBatches>,
    /// Identity of text, tokeniser and task.
    pub sha256: String,
}

impl Data {
    /// A byte-level language model.
    ///
    /// # Errors
    /// [`Error::DataTooShort`]; [`Error::Setting`].
    pub fn bytes(config: &Config, corpus: &Corpus) -> Result<Self, Error> {
        let training = Bytes.encode(&corpus.training);
        let validation = Bytes.encode(&corpus.validation);
        Self::language_model(config, training, validation, corpus.sha256.clone())
    }

    /// A language model over tokens.
    ///
    /// # Errors
    /// [`Error::DataTooShort`]; [`Error::Setting`].
    pub fn language_model(
        config: &Config,
        training: impl Into<Tokens>,
        validation: impl Into<Tokens>,
        sha256: String,
    ) -> Result<Self, Error> {
        let (batch, seq) = (config.batch, config.model.seq);
        let training = Sampler::new(training, "training", batch, seq, config.seed)?;
        let batches = config.eval_batches;
        let validation = Sweep::new(validation, "validation", batch, seq, batches)?;
        Ok(Self { training: Box::new(training), validation: Box::new(validation), sha256 })
    }

    /// Masked tokens of a text, with or without pairs of sentences.
    ///
    /// # Errors
    /// [`Error::DataTooShort`]; [`Error::Setting`]; [`Error::Tokenizer`].
    pub fn masked(config: &Config, corpus: &Corpus, pieces: &Subwords) -> Result<Self, Error> {
        let masking = Masking {
            seq: config.model.seq,
            probability: config.mask_probability,
            vocabulary: pieces.vocabulary() as u32,
            special: pieces.special()?,
            pairs: config.task() == Task::PreTraining,
            seed: config.seed,
        };
        let (training, validation) =
            (pieces.encode_text(&corpus.training)?, pieces.encode_text(&corpus.validation)?);
        let (batch, batches) = (config.batch, config.eval_batches);
        let sha256 = identity(&[&corpus.sha256, &pieces.sha256()?, config.task().name()]);
        let training = masking.training(training.into(), batch)?;
        let validation = masking.evaluation(validation.into(), batch, batches)?;
        Ok(Self { training: Box::new(training), validation: Box::new(validation), sha256 })
    }

    /// Classes of sentences.
    ///
    /// # Errors
    /// [`Error::Tokenizer`]; [`Error::Setting`].
    pub fn classification(
        config: &Config,
        examples: &Examples,
        pieces: &Subwords,
    ) -> Result<Self, Error> {
        let sha256 = identity(&[&examples.sha256, &pieces.sha256()?, "classification"]);
        let part = |part: &[Example]| examples::encode(part, pieces, config.model.seq);
        let rows = examples::Rows::new(part(&examples.training)?, config, pieces)?;
        let held_out = examples::Rows::new(part(&examples.validation)?, config, pieces)?;
        Ok(Self { training: Box::new(rows), validation: Box::new(held_out), sha256 })
    }

    /// Answers within texts.
    ///
    /// # Errors
    /// [`Error::Tokenizer`]; [`Error::Setting`].
    pub fn span(config: &Config, questions: &Questions, pieces: &Subwords) -> Result<Self, Error> {
        let sha256 = identity(&[&questions.sha256, &pieces.sha256()?, "span"]);
        let part = |part: &[Question]| span::encode(part, pieces, config.model.seq);
        let rows = examples::Rows::new(part(&questions.training)?, config, pieces)?;
        let held_out = examples::Rows::new(part(&questions.validation)?, config, pieces)?;
        Ok(Self { training: Box::new(rows), validation: Box::new(held_out), sha256 })
    }
}

/// SHA-256 over parts, each with its length before it.
fn identity(parts: &[&str]) -> String {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part.as_bytes());
    }
    hex(&digest.finalize())
}
