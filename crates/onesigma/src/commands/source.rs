//! From a run folder or a checkpoint file to a trained session.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use onesigma::setup;
use onesigma::train::Error;
use onesigma::train::checkpoint::Checkpoint;
use onesigma::train::config::Config;
use onesigma::train::corpus::{Corpus, NotUtf8, Streamed};
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

/// What tokens are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Units {
    /// Bytes, whatever they stand for.
    Bytes,
    /// Characters, so the text has to be UTF-8.
    Characters,
}

/// The text that a configuration names, `data` and a validation text of its own; says which files
/// were left out, and which are not UTF-8 unless that is an error.
pub fn corpus(config: &Config, units: Units) -> Result<Corpus> {
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
    encoding(&corpus.not_utf8, units)?;
    Ok(corpus)
}

/// The files that a configuration names, looked through and not kept; says what [`corpus`] says.
pub fn streamed(config: &Config, units: Units) -> Result<Streamed> {
    let valid = config.valid.as_deref().map(Path::new);
    let text = Streamed::survey(Path::new(&config.data), valid, &config.field)?;
    warn(&text.skipped);
    encoding(&text.not_utf8, units)?;
    Ok(text)
}

fn warn(skipped: &[PathBuf]) {
    if let Some(first) = skipped.first() {
        let count = skipped.len();
        eprintln!("warning: left out {count} file(s) that are not text, {} first", first.display());
    }
}

fn encoding(files: &[NotUtf8], units: Units) -> Result<()> {
    let Some(NotUtf8 { path, offset }) = files.first() else { return Ok(()) };
    if units == Units::Characters {
        return Err(Error::DataEncoding { path: path.clone(), offset: *offset }.into());
    }
    let more = match files.len() {
        1 => String::new(),
        count => format!(", nor are {} other file(s)", count - 1),
    };
    eprintln!(
        "warning: {} is not UTF-8 (first at byte {offset}){more}: its bytes are taken as they are",
        path.display()
    );
    Ok(())
}
