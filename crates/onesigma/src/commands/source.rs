//! From a run folder or a checkpoint file to a trained session.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use onesigma::setup;
use onesigma::train::Error;
use onesigma::train::checkpoint::Checkpoint;
use onesigma::train::config::Config;
use onesigma::train::corpus::{Corpus, Streamed};
use onesigma::train::session::Session;

/// The newest whole checkpoint of a run folder, or the file itself; warnings go to standard error.
pub fn checkpoint(path: &Path) -> Result<Checkpoint> {
    if path.is_file() {
        return Ok(Checkpoint::load(path)?);
    }
    let (_, checkpoint, warnings) = Checkpoint::latest(&path.join("checkpoints"))?;
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
    Ok(checkpoint)
}

/// The configuration that a checkpoint was made with.
pub fn config(checkpoint: &Checkpoint) -> Result<Config> {
    serde_json::from_value(checkpoint.state.config.clone())
        .context("the checkpoint's configuration is not one that this version understands")
}

/// A session in the state of a checkpoint.
pub fn session(config: &Config, checkpoint: &Checkpoint) -> Result<Session> {
    let mut session = setup::session(config)?;
    session.seed(config.seed)?;
    session.restore(&checkpoint.tensors)?;
    Ok(session)
}

/// The text that a configuration names, `data` and a validation text of its own; says which files
/// were left out.
pub fn corpus(config: &Config) -> Result<Corpus> {
    let field = config.field.as_str();
    let corpus = match (config.data.as_str(), config.valid.as_deref()) {
        ("cargo", Some(valid)) => {
            return Err(Error::Setting {
                name: "--valid",
                given: valid.into(),
                expected: "nothing with the corpus `cargo`, which has its own split".into(),
            }
            .into());
        }
        ("cargo", None) => Corpus::cargo(Path::new("."))?,
        (path, None) => Corpus::from_path(Path::new(path), field)?,
        (path, Some(valid)) => Corpus::from_paths(Path::new(path), Path::new(valid), field)?,
    };
    warn(&corpus.skipped);
    Ok(corpus)
}

/// The files that a configuration names, looked through and not kept; says which were left out.
pub fn streamed(config: &Config) -> Result<Streamed> {
    let valid = config.valid.as_deref().map(Path::new);
    let text = Streamed::survey(Path::new(&config.data), valid, &config.field)?;
    warn(&text.skipped);
    Ok(text)
}

fn warn(skipped: &[PathBuf]) {
    if let Some(first) = skipped.first() {
        let count = skipped.len();
        eprintln!("warning: left out {count} file(s) that are not text, {} first", first.display());
    }
}
