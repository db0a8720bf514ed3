//! The tokens of a language model's text: from the cache, or from the text.

use std::path::{Path, PathBuf};

use anyhow::Result;
use onesigma::train::config::Config;
use onesigma::train::corpus::{Corpus, stamps};
use onesigma::train::text::Tokenizer;
use onesigma::train::token_cache::{self, Found, SHARD_BYTES, Source};
use onesigma::train::tokenizer::Subwords;
use onesigma::train::tokens::Tokens;

use super::source::Units;
use super::{prepare, source};

/// Turns the cache off, in place of its folder.
pub const OFF: &str = "off";

/// A text in two splits.
pub struct Text {
    /// Tokens to train on.
    pub training: Tokens,
    /// Tokens to measure on.
    pub validation: Tokens,
    /// Identity of text and tokeniser.
    pub sha256: String,
    /// The tokeniser, unless it is that of bytes.
    pub pieces: Option<Subwords>,
    /// The cache folder, if the tokens are in one.
    pub cache: Option<PathBuf>,
}

/// Reads the text of a configuration, with the tokeniser that there is or the one that the
/// configuration names.
pub fn read(config: &Config, pieces: Option<Subwords>) -> Result<Text> {
    let name = config.tokenizer.as_deref().unwrap_or("bytes");
    let mut corpus = None;
    let pieces = match (pieces, name) {
        (Some(pieces), _) => Some(pieces),
        (None, "bytes") => None,
        (None, "wordpiece") => {
            let text = source::corpus(config, Units::Characters)?;
            let training = String::from_utf8_lossy(&text.training);
            let pieces = prepare::tokenizer(config, name, training.lines())?;
            drop(training);
            corpus = Some(text);
            Some(pieces)
        }
        (None, path) => Some(prepare::tokenizer(config, path, std::iter::empty())?),
    };
    let units = if pieces.is_some() { Units::Characters } else { Units::Bytes };
    let tokenizer = Tokenizer::from(pieces.clone());
    let Some((root, source)) = place(config, &tokenizer)? else {
        let corpus = corpus.map_or_else(|| source::corpus(config, units), Ok)?;
        return in_memory(&corpus, &tokenizer, pieces);
    };
    let folder = root.join(source.folder_name());
    let found = match token_cache::open(&root, &source) {
        Found::Whole(cached) => *cached,
        missing => {
            if let Found::Useless(reason) = missing {
                eprintln!("cache {}: {reason}; making it anew", folder.display());
            }
            drop(corpus);
            let text = source::streamed(config, units)?;
            let cached = token_cache::build(&root, &source, &text, &tokenizer, SHARD_BYTES)?;
            let tokens = cached.index.training + cached.index.validation;
            tracing::info!(tokens, cache = %folder.display(), "tokenised");
            cached
        }
    };
    let sha256 = identity(&found.index.corpus_sha256, &tokenizer)?;
    let (training, validation) = (found.training, found.validation);
    Ok(Text { training, validation, sha256, pieces, cache: Some(folder) })
}

/// Where the cache of a configuration is, and what it is made from; none where there is none.
fn place(config: &Config, tokenizer: &Tokenizer) -> Result<Option<(PathBuf, Source)>> {
    if config.data == "cargo" || config.cache.as_deref() == Some(OFF) {
        return Ok(None);
    }
    let (mut files, mut is_costly) = stamps(Path::new(&config.data))?;
    if let Some(valid) = &config.valid {
        let (more, costs) = stamps(Path::new(valid))?;
        files.extend(more);
        is_costly |= costs;
    }
    let identity = tokenizer.identity()?;
    // Plain text as bytes is read as fast as a cache.
    let root = match &config.cache {
        Some(folder) => Some(PathBuf::from(folder)),
        None if is_costly || identity != "bytes" => default_root(),
        None => None,
    };
    let source = Source {
        data: config.data.clone(),
        valid: config.valid.clone(),
        field: config.field.clone(),
        tokenizer: identity,
        files,
    };
    Ok(root.map(|root| (root, source)))
}

/// The user's own cache folder; `ONESIGMA_CACHE` names another, or is `off`.
pub fn default_root() -> Option<PathBuf> {
    let named = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(folder) = named("ONESIGMA_CACHE") {
        return (folder != OFF).then(|| folder.into());
    }
    let cache = named("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || named("HOME").map(|home| Path::new(&home).join(".cache"));
    Some(cache.or_else(home)?.join("onesigma").join("tokens"))
}

fn identity(corpus: &str, tokenizer: &Tokenizer) -> Result<String> {
    Ok(match tokenizer {
        Tokenizer::Bytes => corpus.to_owned(),
        // Line ends and ends of documents are tokens.
        Tokenizer::Subwords(pieces) => format!("{corpus} {} whole", pieces.sha256()?),
    })
}

/// A text that is not cached.
fn in_memory(corpus: &Corpus, tokenizer: &Tokenizer, pieces: Option<Subwords>) -> Result<Text> {
    let sha256 = identity(&corpus.sha256, tokenizer)?;
    let tokens = |text: &[u8], ends: &[usize]| -> Result<Tokens> {
        let mut all = Vec::new();
        for document in Corpus::documents_of(text, ends) {
            tokenizer.encode_document(document, &mut |ids| {
                all.extend_from_slice(ids);
                Ok(())
            })?;
        }
        Ok(all.into())
    };
    let training = tokens(&corpus.training, &corpus.training_ends)?;
    let validation = tokens(&corpus.validation, &corpus.validation_ends)?;
    Ok(Text { training, validation, sha256, pieces, cache: None })
}
