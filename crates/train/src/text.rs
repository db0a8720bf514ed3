//! The tokeniser of a language model: bytes, or what a file holds.

use crate::Error;
use crate::tokenizer::{Bytes, Subwords};

/// A tokeniser.
#[derive(Clone, Debug)]
pub enum Tokenizer {
    /// One token per byte.
    Bytes,
    /// Words and parts of words.
    Subwords(Box<Subwords>),
}

impl From<Option<Subwords>> for Tokenizer {
    fn from(pieces: Option<Subwords>) -> Self {
        pieces.map_or(Self::Bytes, |pieces| Self::Subwords(Box::new(pieces)))
    }
}

impl Tokenizer {
    /// Number of distinct tokens.
    pub fn vocabulary(&self) -> usize {
        match self {
            Self::Bytes => Bytes::VOCABULARY,
            Self::Subwords(pieces) => pieces.vocabulary(),
        }
    }

    /// The tokens of a text.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        match self {
            Self::Bytes => Ok(text.bytes().map(u32::from).collect()),
            Self::Subwords(pieces) => pieces.encode(text),
        }
    }

    /// Hands the tokens of a document to `each`, part by part, with the token that ends a text if
    /// the vocabulary has one.
    ///
    /// # Errors
    /// [`Error::Tokenizer`]; those of `each`.
    pub fn encode_document(
        &self,
        text: &[u8],
        each: &mut dyn FnMut(&[u32]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        match self {
            Self::Bytes => text.chunks(1 << 16).try_for_each(|part| {
                each(&part.iter().map(|&byte| u32::from(byte)).collect::<Vec<_>>())
            }),
            Self::Subwords(pieces) => pieces.encode_document(text, each),
        }
    }

    /// What it is, for the identity of tokens: `bytes`, or SHA-256 of its file.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn identity(&self) -> Result<String, Error> {
        match self {
            Self::Bytes => Ok("bytes".into()),
            Self::Subwords(pieces) => pieces.sha256(),
        }
    }

    /// The text of tokens; what is not UTF-8 is replaced.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn decode(&self, tokens: &[u32]) -> Result<String, Error> {
        match self {
            Self::Bytes => {
                let bytes: Vec<u8> =
                    tokens.iter().map(|&token| u8::try_from(token).unwrap_or(b'?')).collect();
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            Self::Subwords(pieces) => pieces.decode(tokens),
        }
    }
}
