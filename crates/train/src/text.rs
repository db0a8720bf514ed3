//! The tokeniser of a language model: bytes, or what a file holds.

use crate::Error;
use crate::tokenizer::{Bytes, Subwords, whole_parts};

/// A tokeniser.
///
/// ```
/// use onesigma_train::text::Tokenizer;
///
/// let tokens = Tokenizer::Bytes.encode("\u{20ac}5")?;
/// assert_eq!(tokens, [0xe2, 0x82, 0xac, 0x35]);
/// assert_eq!(Tokenizer::Bytes.decode(&tokens)?, "\u{20ac}5");
/// # Ok::<(), onesigma_train::Error>(())
/// ```
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

    /// A document whose text comes in parts; its tokens are those of
    /// [`encode_document`](Self::encode_document).
    pub fn begin(&self) -> Encoding<'_> {
        Encoding { tokenizer: self, bytes: Vec::new(), text: String::new() }
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

/// A document that is encoded while its text comes, see [`Tokenizer::begin`]. It keeps a few
/// megabytes; more only of a text without line ends, which is cut nowhere.
#[derive(Clone, Debug)]
pub struct Encoding<'a> {
    tokenizer: &'a Tokenizer,
    /// What came since the last line end.
    bytes: Vec<u8>,
    /// Whole lines that are not encoded yet.
    text: String,
}

/// Bytes that are kept before it is tried to encode some of them.
const KEPT: usize = 2 << 20;

impl Encoding<'_> {
    /// Takes more of the text and hands tokens to `each`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`]; those of `each`.
    pub fn push(
        &mut self,
        text: &[u8],
        each: &mut dyn FnMut(&[u32]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let Tokenizer::Subwords(pieces) = self.tokenizer else {
            return self.tokenizer.encode_document(text, each);
        };
        self.bytes.extend_from_slice(text);
        if self.bytes.len() < KEPT {
            return Ok(());
        }
        // A line end is never within a character, so the lines before it are what they would be
        // in the whole text, damaged characters included.
        let Some(end) = self.bytes.iter().rposition(|&byte| byte == b'\n') else { return Ok(()) };
        self.text.push_str(&String::from_utf8_lossy(&self.bytes[..=end]));
        self.bytes.drain(..=end);
        let whole = whole_parts(&self.text);
        pieces.encode_parts(&self.text[..whole], each)?;
        self.text.drain(..whole);
        Ok(())
    }

    /// Ends the document, and is ready for the next.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn end(&mut self, each: &mut dyn FnMut(&[u32]) -> Result<(), Error>) -> Result<(), Error> {
        let Tokenizer::Subwords(pieces) = self.tokenizer else { return Ok(()) };
        self.text.push_str(&String::from_utf8_lossy(&self.bytes));
        self.bytes.clear();
        pieces.encode_parts(&self.text, each)?;
        self.text.clear();
        pieces.end_document(each)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_in_parts_has_the_tokens_of_the_whole() -> Result<(), Error> {
        let mut text: Vec<u8> =
            (0..120_000).flat_map(|n: u64| format!("{n} is {}\n", n * n).into_bytes()).collect();
        assert!(text.len() > KEPT);
        // Bytes that are no UTF-8, one of them before a line end.
        text[1000] = 0xff;
        let line = text.iter().skip(5000).position(|&byte| byte == b'\n').expect("a line");
        text[5000 + line - 1] = 0xc3;
        let words = ["one two", "0 1 2 3 4 5 6 7 8 9 is"];
        let pieces = Subwords::train(words.into_iter(), 60, true)?;
        for tokenizer in [Tokenizer::Bytes, Some(pieces).into()] {
            let mut expected = Vec::new();
            tokenizer.encode_document(&text, &mut |ids| {
                expected.extend_from_slice(ids);
                Ok(())
            })?;
            let mut encoding = tokenizer.begin();
            for size in [700, 1_000_003] {
                let mut found = Vec::new();
                let mut each = |ids: &[u32]| {
                    found.extend_from_slice(ids);
                    Ok(())
                };
                for part in text.chunks(size) {
                    encoding.push(part, &mut each)?;
                }
                encoding.end(&mut each)?;
                assert!(found == expected, "{} and {} tokens", found.len(), expected.len());
            }
        }
        Ok(())
    }
}
