//! Text to tokens and back.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use sha2::{Digest, Sha256};
use tokenizers::models::wordpiece::{WordPiece, WordPieceTrainerBuilder};
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{
    AddedToken, NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString,
    PreTokenizer, Trainer,
};

use crate::corpus::hex;
use crate::{Error, atomic};

/// The byte-level tokeniser: token `i` is byte `i`, so any text has an encoding and there is
/// nothing to train or to download.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes;

impl Bytes {
    /// Number of distinct tokens.
    pub const VOCABULARY: usize = 256;

    /// One token per byte.
    pub fn encode(self, text: &[u8]) -> Vec<u16> {
        text.iter().map(|&byte| u16::from(byte)).collect()
    }

    /// The bytes of `tokens`. A token outside the vocabulary becomes the byte `?`: it cannot come
    /// from [`Bytes::encode`].
    pub fn decode(self, tokens: &[u16]) -> Vec<u8> {
        tokens.iter().map(|&token| u8::try_from(token).unwrap_or(b'?')).collect()
    }
}

/// Ids of the tokens that BERT adds to a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Special {
    /// `[PAD]`
    pub pad: u32,
    /// `[UNK]`
    pub unknown: u32,
    /// `[CLS]`, which starts every sequence.
    pub start: u32,
    /// `[SEP]`, which ends every sentence.
    pub end: u32,
    /// `[MASK]`
    pub mask: u32,
}

/// Names of the special tokens, in the order of [`Special`]; a trained vocabulary starts with
/// them.
const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// A token and the bytes of the text that it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its id.
    pub id: u32,
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

/// A vocabulary of words and parts of words: WordPiece as BERT uses it, words of a cleaned text cut
/// into the longest pieces of a vocabulary (arXiv 1810.04805, section 3), or whatever a
/// `tokenizer.json` holds.
///
/// ```
/// use onesigma_train::tokenizer::Subwords;
///
/// let pieces = Subwords::train(["the cat sat", "the hat"].into_iter(), 40, true)?;
/// let ids = pieces.encode("The hat")?;
/// assert_eq!(pieces.decode(&ids)?, "the hat");
/// # Ok::<(), onesigma_train::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Subwords {
    inner: tokenizers::Tokenizer,
    special: Option<Special>,
    origin: String,
}

impl Subwords {
    /// Learns a vocabulary of `size` tokens from texts. `lowercase` also takes accents off.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a size that does not hold the letters of the text.
    pub fn train<'a>(
        texts: impl Iterator<Item = &'a str> + Send,
        size: usize,
        lowercase: bool,
    ) -> Result<Self, Error> {
        let wrong = |reason: String| Error::Tokenizer { origin: "the text".into(), reason };
        let texts: Vec<&str> = texts.collect();
        // The trainer numbers letters as it meets them in a hash map, and breaks ties between
        // merges by number: declared beforehand they have the same numbers each time.
        let (first, rest) = letters(&texts, lowercase).map_err(|error| wrong(error.to_string()))?;
        let plain = first.iter().chain(&rest).collect::<BTreeSet<_>>();
        let declared = SPECIAL
            .map(str::to_owned)
            .into_iter()
            .chain(plain.iter().map(|letter| letter.to_string()))
            .chain(rest.iter().map(|letter| format!("##{letter}")));
        let mut trainer = WordPieceTrainerBuilder::default()
            .vocab_size(size)
            .min_frequency(2)
            .show_progress(false)
            .initial_alphabet(plain.iter().map(|&&letter| letter).collect())
            .limit_alphabet(plain.len())
            .special_tokens(declared.map(|token| AddedToken::from(token, true)).collect())
            .build();
        let mut model = WordPiece::default();
        trainer
            .feed(texts.iter(), |text| words(text, lowercase))
            .and_then(|()| trainer.train(&mut model))
            .map_err(|error| wrong(error.to_string()))?;
        let mut tokenizer = empty(lowercase)?;
        tokenizer.with_model(model);
        let special = SPECIAL.map(|token| AddedToken::from(token, true));
        tokenizer.add_special_tokens(special).map_err(|error| wrong(error.to_string()))?;
        let found = tokenizer.get_vocab_size(true);
        if found > size {
            return Err(wrong(format!(
                "it has letters for {found} tokens, more than the vocabulary of {size}; raise it"
            )));
        }
        Self::checked(tokenizer, "the trained vocabulary")
    }

    /// Reads a WordPiece `vocab.txt` (one token a line, its number is the id) or `tokenizer.json`, or either
    /// from a folder, where `tokenizer.json` comes first. For a `vocab.txt`, `lowercase` says
    /// whether the text is made lower case; `tokenizer.json` knows that itself.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a file that is missing, broken or of another kind, and for a
    /// `vocab.txt` without BERT's special tokens.
    pub fn from_path(path: &Path, lowercase: bool) -> Result<Self, Error> {
        let origin = path.display().to_string();
        let wrong = |reason: String| Error::Tokenizer { origin: origin.clone(), reason };
        if !path.exists() {
            return Err(wrong(
                "there is no such file or folder; `--tokenizer` takes `bytes`, `wordpiece`, a \
                 tokenizer.json, a vocab.txt or a folder with one"
                    .into(),
            ));
        }
        if path.is_dir() {
            for name in ["tokenizer.json", "vocab.txt"] {
                let file = path.join(name);
                if file.is_file() {
                    return Self::from_path(&file, lowercase);
                }
            }
            return Err(wrong("holds neither tokenizer.json nor vocab.txt".into()));
        }
        if path.extension().is_some_and(|extension| extension == "json") {
            let inner = tokenizers::Tokenizer::from_file(path);
            let mut inner = inner.map_err(|error| wrong(error.to_string()))?;
            // Sequences are cut and padded where batches are made.
            inner.with_padding(None);
            inner.with_truncation(None).map_err(|error| wrong(error.to_string()))?;
            return Self::checked(inner, &origin);
        }
        let vocabulary = WordPiece::read_file(&path.to_string_lossy());
        let vocabulary = vocabulary.map_err(|error| wrong(error.to_string()))?;
        if let Some(missing) = SPECIAL.iter().find(|token| !vocabulary.contains_key(**token)) {
            return Err(wrong(format!("it has no token `{missing}`, which BERT needs")));
        }
        let model = WordPiece::builder().vocab(vocabulary).build();
        let mut inner = empty(lowercase)?;
        inner.with_model(model.map_err(|error| wrong(error.to_string()))?);
        let special = SPECIAL.map(|token| AddedToken::from(token, true));
        inner.add_special_tokens(special).map_err(|error| wrong(error.to_string()))?;
        Self::checked(inner, &origin)
    }

    fn checked(inner: tokenizers::Tokenizer, origin: &str) -> Result<Self, Error> {
        let ids = SPECIAL.map(|token| inner.token_to_id(token));
        let special = match ids {
            [Some(pad), Some(unknown), Some(start), Some(end), Some(mask)] => {
                Some(Special { pad, unknown, start, end, mask })
            }
            _ => None,
        };
        Ok(Self { inner, special, origin: origin.to_owned() })
    }

    /// Writes `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Tokenizer`].
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        atomic::write(path, self.to_json()?.as_bytes())
    }

    fn to_json(&self) -> Result<String, Error> {
        self.inner.to_string(true).map_err(|error| Error::Tokenizer {
            origin: "tokenizer.json".into(),
            reason: error.to_string(),
        })
    }

    /// SHA-256 of its file's content.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn sha256(&self) -> Result<String, Error> {
        Ok(hex(&Sha256::digest(self.to_json()?.as_bytes())))
    }

    /// Number of distinct tokens.
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The special tokens.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a vocabulary without them.
    pub fn special(&self) -> Result<Special, Error> {
        self.special.ok_or_else(|| Error::Tokenizer {
            origin: self.origin.clone(),
            reason: format!("it lacks one of {}, which BERT needs", SPECIAL.join(", ")),
        })
    }

    /// Every token in the order of ids, the lines of a `vocab.txt`.
    pub fn tokens(&self) -> Vec<String> {
        (0..self.vocabulary() as u32)
            .map(|id| self.inner.id_to_token(id).unwrap_or_default())
            .collect()
    }

    /// Pieces of a text, without special tokens.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn pieces(&self, text: &str) -> Result<Vec<Piece>, Error> {
        let encoding = self.inner.encode(text, false).map_err(|error| Error::Tokenizer {
            origin: "a text".into(),
            reason: error.to_string(),
        })?;
        let pieces = encoding.get_ids().iter().zip(encoding.get_offsets());
        Ok(pieces.map(|(&id, &(start, end))| Piece { id, start, end }).collect())
    }

    /// Ids of a text, without special tokens.
    ///
    /// # Errors
    /// As [`pieces`](Self::pieces).
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        Ok(self.pieces(text)?.into_iter().map(|piece| piece.id).collect())
    }

    /// Ids of a text that may be long and need not be UTF-8, line by line.
    ///
    /// # Errors
    /// As [`pieces`](Self::pieces).
    pub fn encode_text(&self, text: &[u8]) -> Result<Vec<u16>, Error> {
        let size = self.vocabulary();
        if size > usize::from(u16::MAX) + 1 {
            let reason = format!("it has {size} tokens, more than the 65536 of this task");
            return Err(Error::Tokenizer { origin: self.origin.clone(), reason });
        }
        let text = String::from_utf8_lossy(text);
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let mut ids = Vec::new();
        for block in lines.chunks(1024) {
            let encodings = self.inner.encode_batch(block.to_vec(), false).map_err(|error| {
                Error::Tokenizer { origin: "the text".into(), reason: error.to_string() }
            })?;
            ids.extend(encodings.iter().flat_map(|one| one.get_ids()).map(|&id| id as u16));
        }
        Ok(ids)
    }

    /// Hands the ids of a whole text, line ends included, to `each` part by part, and at its end the
    /// token that ends a text, if the vocabulary has one of [`END_OF_TEXT`].
    ///
    /// The text is cut between two lines that both have something beside white space at the cut:
    /// there a byte-level vocabulary (GPT-2's and later ones) never joins two pieces.
    ///
    /// # Errors
    /// As [`pieces`](Self::pieces); those of `each`.
    pub fn encode_document(
        &self,
        text: &[u8],
        each: &mut dyn FnMut(&[u32]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.encode_parts(&String::from_utf8_lossy(text), each)?;
        self.end_document(each)
    }

    /// The tokens of a text, without the one that ends a document.
    pub(crate) fn encode_parts(
        &self,
        text: &str,
        each: &mut dyn FnMut(&[u32]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let parts: Vec<&str> = parts(text, PART).collect();
        for block in parts.chunks(64) {
            let encodings = self.inner.encode_batch(block.to_vec(), false).map_err(|error| {
                Error::Tokenizer { origin: "the text".into(), reason: error.to_string() }
            })?;
            encodings.iter().try_for_each(|one| each(one.get_ids()))?;
        }
        Ok(())
    }

    /// The token that ends a document, if the vocabulary has one.
    pub(crate) fn end_document(
        &self,
        each: &mut dyn FnMut(&[u32]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let end = END_OF_TEXT.iter().find_map(|token| self.inner.token_to_id(token));
        end.map_or(Ok(()), |end| each(&[end]))
    }

    /// The text of tokens; pieces are joined, special tokens left out.
    ///
    /// # Errors
    /// As [`pieces`](Self::pieces).
    pub fn decode(&self, ids: &[u32]) -> Result<String, Error> {
        self.inner.decode(ids, true).map_err(|error| Error::Tokenizer {
            origin: "tokens".into(),
            reason: error.to_string(),
        })
    }
}

/// Tokens that end a text, in the vocabularies of GPT-2, Llama 3 and Llama 2.
pub const END_OF_TEXT: [&str; 3] = ["<|endoftext|>", "<|end_of_text|>", "</s>"];

/// Bytes of a part that is encoded at once, at least.
const PART: usize = 1 << 15;

/// Cuts a text after line ends between two characters that are no white space, into parts of at
/// least `least` bytes.
fn parts(text: &str, least: usize) -> impl Iterator<Item = &str> {
    let bytes = text.as_bytes();
    let mut start = 0;
    std::iter::from_fn(move || {
        let mut at = (start + least).min(bytes.len());
        let is_cut = |at: usize| {
            bytes[at - 1] == b'\n'
                && at >= 2
                && !bytes[at - 2].is_ascii_whitespace()
                && bytes[at].is_ascii_graphic()
        };
        while at < bytes.len() && !is_cut(at) {
            at += 1;
        }
        let part = text.get(start..at).filter(|part| !part.is_empty());
        start = at;
        part
    })
}

/// Bytes of the parts of a text that are whole however it goes on.
pub(crate) fn whole_parts(text: &str) -> usize {
    let mut ends = (0, 0);
    for part in parts(text, PART) {
        ends = (ends.1, ends.1 + part.len());
    }
    ends.0
}

/// Letters that a vocabulary keeps at most, the most frequent ones.
const LETTERS: usize = 1000;

/// The letters that start words, and those within words.
fn letters(
    texts: &[&str],
    lowercase: bool,
) -> tokenizers::Result<(BTreeSet<char>, BTreeSet<char>)> {
    let mut counts: BTreeMap<char, [u64; 2]> = BTreeMap::new();
    for text in texts {
        for word in words(text, lowercase)? {
            for (n, letter) in word.chars().enumerate() {
                counts.entry(letter).or_default()[usize::from(n > 0)] += 1;
            }
        }
    }
    let mut kept: Vec<(char, [u64; 2])> = counts.into_iter().collect();
    // Stable: of letters that are equally frequent the lower one stands first.
    kept.sort_by_key(|(_, [first, rest])| std::cmp::Reverse(first + rest));
    kept.truncate(LETTERS);
    let at = |place: usize| {
        let found = kept.iter().filter(|(_, counts)| counts[place] > 0);
        found.map(|(letter, _)| *letter).collect()
    };
    Ok((at(0), at(1)))
}

/// The cleaned words of a text.
fn words(text: &str, lowercase: bool) -> tokenizers::Result<Vec<String>> {
    let mut clean = NormalizedString::from(text);
    normalizer(lowercase).normalize(&mut clean)?;
    let mut split = PreTokenizedString::from(clean);
    BertPreTokenizer.pre_tokenize(&mut split)?;
    let words = split.get_splits(OffsetReferential::Original, OffsetType::Byte);
    Ok(words.into_iter().map(|(word, _, _)| word.to_owned()).collect())
}

fn normalizer(lowercase: bool) -> BertNormalizer {
    BertNormalizer::new(true, true, None, lowercase)
}

/// WordPiece with BERT's cleaning and words, without a vocabulary.
fn empty(lowercase: bool) -> Result<tokenizers::Tokenizer, Error> {
    let mut tokenizer = tokenizers::Tokenizer::new(WordPiece::default());
    tokenizer.with_normalizer(Some(normalizer(lowercase))).map_err(|error| Error::Tokenizer {
        origin: "the text".into(),
        reason: error.to_string(),
    })?;
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    tokenizer.with_decoder(Some(tokenizers::decoders::wordpiece::WordPiece::default()));
    Ok(tokenizer)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "The cat sat on the mat. The cats ran, the bats sat, and the rat ran on.";

    #[test]
    fn every_byte_survives_the_round_trip() {
        let all: Vec<u8> = (0..=255).collect();
        let tokens = Bytes.encode(&all);
        assert!(tokens.iter().all(|&token| usize::from(token) < Bytes::VOCABULARY));
        assert_eq!(Bytes.decode(&tokens), all);
    }

    fn trained() -> Subwords {
        Subwords::train(std::iter::repeat_n(TEXT, 20), 60, true).expect("enough room")
    }

    #[test]
    fn a_vocabulary_is_learned_and_the_same_each_time() {
        let pieces = trained();
        assert!((40..=60).contains(&pieces.vocabulary()), "{}", pieces.vocabulary());
        let special = pieces.special().expect("BERT's own");
        assert_eq!([special.pad, special.unknown, special.start], [0, 1, 2]);
        assert_eq!([special.end, special.mask], [3, 4]);
        let ids = pieces.encode("the cats sat").expect("a text");
        assert!(!ids.contains(&special.unknown), "{ids:?}");
        assert_eq!(pieces.decode(&ids).expect("tokens"), "the cats sat");
        assert_eq!(pieces.tokens(), trained().tokens());
        assert_eq!(pieces.sha256().expect("a file"), trained().sha256().expect("a file"));
        let few = Subwords::train(std::iter::once(TEXT), 8, true).expect_err("too small");
        assert!(few.to_string().contains("raise it"), "{few}");
    }

    #[test]
    fn pieces_know_where_they_stand() {
        let pieces = trained();
        let text = "The  BATS ran";
        let found = pieces.pieces(text).expect("a text");
        let words: String = found.iter().map(|piece| &text[piece.start..piece.end]).collect();
        assert_eq!(words, "TheBATSran");
    }

    #[test]
    fn both_kinds_of_files_read_back() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let pieces = trained();
        let ids = pieces.encode("The bats sat, unknown ☃").expect("a text");
        let json = dir.path().join("tokenizer.json");
        pieces.save(&json).expect("room");
        let read = Subwords::from_path(&json, false).expect("its own file");
        assert_eq!(read.encode("The bats sat, unknown ☃").expect("a text"), ids);
        std::fs::remove_file(json).expect("its own file");
        let list = dir.path().join("vocab.txt");
        std::fs::write(&list, pieces.tokens().join("\n") + "\n").expect("room");
        let read = Subwords::from_path(dir.path(), true).expect("a list of tokens");
        assert_eq!(read.encode("The bats sat, unknown ☃").expect("a text"), ids);
        assert_eq!(read.special().expect("all"), pieces.special().expect("all"));

        std::fs::write(&list, "a\nb\n").expect("room");
        let error = Subwords::from_path(&list, true).expect_err("no special tokens");
        assert!(error.to_string().contains("vocab.txt"), "{error}");
        std::fs::remove_file(&list).expect("its own file");
        assert!(Subwords::from_path(dir.path(), true).is_err());
        assert!(Subwords::from_path(&list, true).is_err());
    }

    #[test]
    fn parts_are_cut_between_lines_and_lose_nothing() {
        let text = "one\ntwo \n three\n\nfour\u{e9}\nfive\n\u{2003}six\nseven";
        let cut: Vec<&str> = parts(text, 1).collect();
        assert_eq!(cut.concat(), text);
        assert_eq!(cut, ["one\n", "two \n three\n\nfour\u{e9}\n", "five\n\u{2003}six\n", "seven"]);
        assert_eq!(parts(text, 1000).collect::<Vec<_>>(), [text]);
        assert_eq!(parts("", 1).count(), 0);
    }

    #[test]
    fn long_texts_are_encoded_line_by_line() {
        let pieces = trained();
        let text = "the cat\n\nsat on \u{fffd} the mat\n".repeat(900);
        let ids = pieces.encode_text(text.as_bytes()).expect("a text");
        let line = pieces.encode("the cat sat on \u{fffd} the mat").expect("a text");
        assert_eq!(ids.len(), line.len() * 900);
        assert!(ids.iter().zip(line.iter().cycle()).all(|(&a, &b)| u32::from(a) == b));
    }
}
