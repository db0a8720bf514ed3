//! What can go wrong between a text file and a finished run.

use std::io;
use std::path::{Path, PathBuf};

/// Everything that training can fail with.
///
/// Each message names what was given, what was expected and, where there is one, the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The default corpus is made of a workspace's locked dependencies, and there is none here.
    #[error(
        "the corpus `cargo` is the text of a Cargo workspace's dependencies, and {dir} is not in \
         one with them ({reason}); run inside the Onesigma workspace or give a text with \
         `--data FILE|DIR`"
    )]
    NoWorkspace {
        /// The folder that was asked.
        dir: PathBuf,
        /// What cargo, or the look into its answer, said.
        reason: String,
    },
    /// A data path does not exist.
    #[error("no such file or folder: {path}; `--data` takes a text file or a folder of them")]
    DataMissing {
        /// The path as it was given.
        path: PathBuf,
    },
    /// A data path exists and holds nothing to train on.
    #[error("{path} holds no text: expected at least one non-empty text file")]
    DataEmpty {
        /// The path as it was given.
        path: PathBuf,
    },
    /// A single data file is not text.
    #[error("{path} is not text (it contains a NUL byte at offset {offset}); give a text file")]
    DataBinary {
        /// The path as it was given.
        path: PathBuf,
        /// Position of the first NUL byte.
        offset: usize,
    },
    /// A file is text, but not UTF-8, which the tokeniser needs.
    #[error(
        "{path} is not UTF-8 (first at byte {offset}), and the tokeniser takes UTF-8 alone; \
         convert it, as with `iconv -f LATIN1 -t UTF-8`; `--tokenizer bytes` takes any text"
    )]
    DataEncoding {
        /// The file.
        path: PathBuf,
        /// Place of the first byte that is not UTF-8.
        offset: usize,
    },
    /// A split is shorter than one sequence and its next token.
    #[error(
        "the {split} split has {tokens} tokens, and one sequence needs {needed} (sequence length \
         plus one); give a longer text or a shorter `--seq`"
    )]
    DataTooShort {
        /// `training` or `validation`.
        split: &'static str,
        /// Tokens in the split.
        tokens: usize,
        /// Tokens that one sequence and its last target need.
        needed: usize,
    },
    /// A setting has a value that cannot work.
    #[error("{name} is {given}, expected {expected}")]
    Setting {
        /// The setting as the command line or the configuration file spells it.
        name: &'static str,
        /// The value that was given.
        given: String,
        /// The values that work.
        expected: String,
    },
    /// A name that is not among the known ones.
    #[error("unknown {kind} `{given}`,{} expected one of: {known}", did_you_mean(given, known))]
    Unknown {
        /// What was named: `recipe`, `model`, `schedule` and so on.
        kind: &'static str,
        /// The name that was given.
        given: String,
        /// The names that exist, separated by commas.
        known: String,
    },
    /// A checkpoint file that cannot be trusted.
    #[error("checkpoint {path} is damaged: {reason}; name an older one, or resume the run folder")]
    CheckpointDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A checkpoint that a newer or older Onesigma wrote.
    #[error("checkpoint {path} has version {found}, and this Onesigma reads version {expected}")]
    CheckpointVersion {
        /// The file.
        path: PathBuf,
        /// The version it states.
        found: u32,
        /// The version that can be read.
        expected: u32,
    },
    /// A folder of checkpoints of which none can be trusted.
    #[error(
        "none of the {count} checkpoints in {folder} is whole ({reason}); take best.safetensors, \
         if it is there, with `--init-from`, or train again into another folder"
    )]
    NoWholeCheckpoint {
        /// The folder.
        folder: PathBuf,
        /// How many there are.
        count: usize,
        /// What is wrong with the newest.
        reason: String,
    },
    /// A folder that holds no run.
    #[error("{path} is no run folder: {reason}; give a folder that `onesigma train` has made")]
    NoRun {
        /// The folder.
        path: PathBuf,
        /// What is missing.
        reason: &'static str,
    },
    /// There is nothing to resume from or to load.
    #[error("no checkpoint in {path}; train first, or give a run folder or a checkpoint file")]
    CheckpointMissing {
        /// The file or folder that was asked.
        path: PathBuf,
    },
    /// A checkpoint of another run: it does not fit this model, recipe or data.
    #[error("checkpoint does not fit: its {what} is {found}, and this run expects {expected}")]
    CheckpointMismatch {
        /// What differs.
        what: String,
        /// The checkpoint's value.
        found: String,
        /// This run's value.
        expected: String,
    },
    /// A run folder already holds a run.
    #[error("{path} already holds a run; continue it with `--resume`, or choose another `--out`")]
    RunExists {
        /// The run folder.
        path: PathBuf,
    },
    /// A configuration file that cannot be understood.
    #[error("{path}: {reason}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// A tokeniser cannot be read, trained or used.
    #[error("tokeniser of {origin}: {reason}")]
    Tokenizer {
        /// The file, or what was tokenised.
        origin: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of examples that cannot be understood.
    #[error("{path}, line {line}: {reason}")]
    Examples {
        /// The file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: usize,
        /// What was found and what was expected.
        reason: String,
    },
    /// The operating system refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// The verb: `read`, `write`, `create` and so on.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The program cannot be built: sizes that make no model, or a recipe that lacks a rule.
    #[error(transparent)]
    Graph(#[from] onesigma_graph::Error),
    /// The model cannot be built.
    #[error(transparent)]
    Model(#[from] onesigma_models::Error),
    /// A recipe cannot be used.
    #[error(transparent)]
    Ops(#[from] onesigma_ops::Error),
    /// A number format cannot be used as it was asked to.
    #[error(transparent)]
    Format(#[from] onesigma_format::Error),
    /// The backend refused the program or failed.
    #[error(transparent)]
    Backend(#[from] onesigma_backend::Error),
    /// The loader thread ended before it was told to.
    #[error("the data loader stopped at step {step}: {reason}")]
    Loader {
        /// The step whose batch was expected next.
        step: u64,
        /// Why, as far as it is known.
        reason: String,
    },
}

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The known name that is nearest to a given one, as part of a sentence.
fn did_you_mean(given: &str, known: &str) -> String {
    let known: Vec<&str> = known.split([',', ';']).map(str::trim).collect();
    let near = onesigma_ops::nearest(given, &known);
    near.map_or(String::new(), |name| format!(" did you mean `{name}`?"))
}

impl Error {
    /// Wraps a system error with what was being done to which path.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    /// Whether the caller's request was wrong (exit code 2), as opposed to a failure on the way
    /// (exit code 1).
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::NoWorkspace { .. }
                | Self::DataMissing { .. }
                | Self::DataEmpty { .. }
                | Self::DataBinary { .. }
                | Self::DataEncoding { .. }
                | Self::DataTooShort { .. }
                | Self::Setting { .. }
                | Self::Unknown { .. }
                | Self::CheckpointMissing { .. }
                | Self::NoRun { .. }
                | Self::RunExists { .. }
                | Self::Config { .. }
                | Self::Tokenizer { .. }
                | Self::Examples { .. }
                | Self::Graph(_)
                | Self::Model(_)
                | Self::Ops(_)
        )
    }
}
