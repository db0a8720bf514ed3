//! `onesigma data`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Subcommand;
use onesigma::train::config::Config;
use onesigma::train::corpus::{Corpus, FIELD};
use onesigma::train::token_cache::{self, Index};

use super::source::Units;
use super::{Usage, source, text};

#[cfg(feature = "download")]
mod wikitext;

/// Arguments of `onesigma data`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  onesigma data wikitext103 --out data/wikitext103
  onesigma data info articles.jsonl.zst --field body
  onesigma data prepare articles.jsonl.zst --field body --tokenizer gpt2/tokenizer.json
  onesigma data caches --remove")]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show what a text holds: documents, bytes, splits, identity
    Info(Info),
    /// Tokenise a text into the cache, as training with the same settings would
    Prepare(Prepare),
    /// List the caches of tokenised texts, or remove them
    Caches(Caches),
    /// Download the raw WikiText-103 (192 MB, 550 MB unpacked) and check it
    #[cfg(feature = "download")]
    Wikitext103(wikitext::Arguments),
}

/// Arguments of `onesigma data info`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  onesigma data info my-books
  onesigma data info articles.jsonl.gz --field body")]
struct Info {
    /// A file of text or JSON lines, plain, .gz or .zst, a folder of them, or `cargo`
    data: String,
    /// Of JSON lines, the field that holds the text
    #[arg(long, value_name = "NAME", default_value = FIELD)]
    field: String,
    /// A text to measure on [default: a part of the data is held back]
    #[arg(long, value_name = "FILE|DIR")]
    valid: Option<String>,
}

/// Arguments of `onesigma data prepare`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  onesigma data prepare my-books --tokenizer gpt2/tokenizer.json
  onesigma train --data my-books --tokenizer gpt2/tokenizer.json")]
struct Prepare {
    #[command(flatten)]
    info: Info,
    /// bytes, or a tokenizer.json, vocab.txt or a folder with one
    #[arg(long, value_name = "NAME|FILE|DIR", default_value = "bytes")]
    tokenizer: String,
    /// Folder of caches [default: the user's cache folder]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
}

/// Arguments of `onesigma data caches`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  onesigma data caches
  onesigma data caches --remove")]
struct Caches {
    /// Folder of caches [default: the user's cache folder]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Remove them
    #[arg(long)]
    remove: bool,
}

/// Looks at data, prepares it, or fetches it.
pub fn run(arguments: &Arguments) -> Result<()> {
    let mut out = io::stdout().lock();
    match &arguments.action {
        Action::Info(arguments) => info(&mut out, arguments),
        Action::Prepare(arguments) => prepare(&mut out, arguments),
        Action::Caches(arguments) => caches(&mut out, arguments),
        #[cfg(feature = "download")]
        Action::Wikitext103(arguments) => wikitext::run(&mut out, arguments),
    }
}

/// A path as the configuration of a run has it.
fn absolute(path: &str) -> String {
    match path {
        "cargo" => path.to_owned(),
        _ => {
            std::path::absolute(path).map_or(path.to_owned(), |p| p.to_string_lossy().into_owned())
        }
    }
}

fn config(info: &Info) -> Config {
    Config {
        data: absolute(&info.data),
        valid: info.valid.as_deref().map(absolute),
        field: info.field.clone(),
        ..Config::default()
    }
}

fn info(out: &mut impl Write, arguments: &Info) -> Result<()> {
    let corpus = source::corpus(&config(arguments), Units::Bytes)?;
    let Corpus { files, training_ends, validation_ends, .. } = &corpus;
    writeln!(out, "documents   {files}")?;
    writeln!(out, "bytes       {}", corpus.len())?;
    writeln!(
        out,
        "training    {} bytes, {} documents",
        corpus.training.len(),
        training_ends.len()
    )?;
    writeln!(
        out,
        "validation  {} bytes, {} documents",
        corpus.validation.len(),
        validation_ends.len()
    )?;
    let encoding = if corpus.not_utf8.is_empty() { "UTF-8" } else { "not all UTF-8" };
    writeln!(out, "encoding    {encoding}")?;
    writeln!(out, "left out    {}", corpus.skipped.len())?;
    writeln!(out, "identity    {}", corpus.sha256)?;
    Ok(())
}

fn prepare(out: &mut impl Write, arguments: &Prepare) -> Result<()> {
    let name = arguments.tokenizer.as_str();
    if name == "wordpiece" {
        let message = "a vocabulary that is learned belongs to a run: give a tokenizer.json";
        return Err(Usage(message.into()).into());
    }
    let root = arguments.cache.clone().or_else(text::default_root);
    let root = root.context("there is no cache folder: give one with `--cache`")?;
    let config = Config {
        tokenizer: Some(if name == "bytes" { name.to_owned() } else { absolute(name) }),
        cache: Some(absolute(&root.to_string_lossy())),
        ..config(&arguments.info)
    };
    let found = text::read(&config, None)?;
    let folder = found.cache.context("the corpus `cargo` is not cached")?;
    let cached = token_cache::read(&folder).map_err(anyhow::Error::msg)?;
    describe(out, &folder, &cached.index)
}

fn describe(out: &mut impl Write, folder: &Path, index: &Index) -> Result<()> {
    writeln!(out, "{}", folder.display())?;
    writeln!(out, "  text        {} ({} bytes)", index.source.data, index.text_bytes)?;
    writeln!(out, "  documents   {}", index.documents)?;
    writeln!(out, "  vocabulary  {}", index.vocabulary)?;
    let tokens = index.training + index.validation;
    writeln!(
        out,
        "  tokens      {} to train on, {} to measure on",
        index.training, index.validation
    )?;
    writeln!(out, "  bytes       {:.3} a token", index.text_bytes as f64 / tokens.max(1) as f64)?;
    writeln!(out, "  shards      {}", index.checksums.len())?;
    Ok(())
}

fn caches(out: &mut impl Write, arguments: &Caches) -> Result<()> {
    let root = arguments.cache.clone().or_else(text::default_root);
    let root = root.context("there is no cache folder: give one with `--cache`")?;
    let found = token_cache::list(&root)?;
    for (folder, index) in &found {
        match index {
            Ok(index) => describe(out, folder, index)?,
            Err(reason) => writeln!(out, "{}\n  useless     {reason}", folder.display())?,
        }
        if arguments.remove {
            std::fs::remove_dir_all(folder)
                .with_context(|| format!("cannot remove {}", folder.display()))?;
            writeln!(out, "  removed")?;
        }
    }
    if found.is_empty() {
        writeln!(out, "no caches in {}", root.display())?;
    }
    Ok(())
}
