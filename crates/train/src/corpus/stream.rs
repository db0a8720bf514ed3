//! Text that is read in parts, so that it never has to fit into memory.
//!
//! It is read twice: [`Streamed::survey`] finds out which documents there are and how long they
//! are, by which the split and the identity are decided; [`Streamed::read`] hands them on. What
//! comes out is what [`Corpus`](super::Corpus) has of the same files.

use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::read::{self, Part};
use super::{NotUtf8, SPLIT_EVERY, SPLIT_FILES, hex};
use crate::Error;

/// Which split a text belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// To train on.
    Training,
    /// To measure on.
    Validation,
}

/// What takes a text in parts. The documents of both splits may alternate; within a split each
/// ends before the next begins.
pub trait Sink {
    /// More of the document of a split.
    ///
    /// # Errors
    /// Those of the sink; reading ends with them.
    fn text(&mut self, split: Split, text: &[u8]) -> Result<(), Error>;

    /// The end of a split's document.
    ///
    /// # Errors
    /// As [`text`](Self::text).
    fn end(&mut self, split: Split) -> Result<(), Error>;
}

/// Files of text that were looked through once.
#[derive(Clone, Debug)]
pub struct Streamed {
    field: String,
    files: Vec<read::TextFile>,
    /// Bytes of each document: eight of ours for each.
    lengths: Vec<u64>,
    /// Number of the first document of a validation text of its own.
    held_out: Option<usize>,
    /// Files that were left out because they are not text, in order.
    pub skipped: Vec<PathBuf>,
    /// Files that are text of another encoding, in order.
    pub not_utf8: Vec<NotUtf8>,
}

impl Streamed {
    /// Looks through the files at a path, and at that of a validation text if it is one of its own;
    /// with the rules of [`Corpus::from_path`](super::Corpus::from_path) and
    /// [`Corpus::from_paths`](super::Corpus::from_paths).
    ///
    /// # Errors
    /// As these.
    pub fn survey(training: &Path, validation: Option<&Path>, field: &str) -> Result<Self, Error> {
        let mut own = Self {
            field: field.to_owned(),
            files: Vec::new(),
            lengths: Vec::new(),
            held_out: None,
            skipped: Vec::new(),
            not_utf8: Vec::new(),
        };
        own.add(training)?;
        if let Some(path) = validation {
            own.held_out = Some(own.lengths.len());
            own.add(path)?;
        }
        Ok(own)
    }

    fn add(&mut self, path: &Path) -> Result<(), Error> {
        let first = self.lengths.len();
        for file in read::text_files(path)? {
            let (known, mut length) = (self.lengths.len(), 0);
            let lengths = &mut self.lengths;
            let looked = file.parts(&self.field, &mut |part| {
                match part {
                    Part::Start(_) => length = 0,
                    Part::Text(text) => length += text.len() as u64,
                    Part::End => lengths.push(length),
                }
                Ok(())
            });
            match looked {
                Ok(wrong) => {
                    self.not_utf8.extend(NotUtf8::at(&file.path, wrong));
                    self.files.push(file);
                }
                Err(Error::DataBinary { .. }) if path.is_dir() => {
                    self.lengths.truncate(known);
                    self.skipped.push(file.path);
                }
                Err(Error::DataBinary { offset, .. }) => {
                    return Err(Error::DataBinary { path: path.into(), offset });
                }
                Err(error) => return Err(error),
            }
        }
        if self.lengths[first..].iter().all(|&length| length == 0) {
            return Err(Error::DataEmpty { path: path.into() });
        }
        Ok(())
    }

    /// Bytes in both splits.
    pub fn bytes(&self) -> u64 {
        self.lengths.iter().sum()
    }

    /// Bytes of a document that are to train on.
    fn cut(&self, document: usize) -> u64 {
        let length = self.lengths[document];
        match self.held_out {
            Some(first) if document >= first => 0,
            Some(_) => length,
            None if self.lengths.len() >= SPLIT_FILES => {
                if document % SPLIT_EVERY == SPLIT_EVERY - 1 { 0 } else { length }
            }
            None => length - length / SPLIT_EVERY as u64,
        }
    }

    /// Hands on every document; gives the identity, that of [`Corpus`](super::Corpus).
    ///
    /// # Errors
    /// [`Error::Io`], for a file that has changed meanwhile too; those of the sink.
    pub fn read(&self, sink: &mut dyn Sink) -> Result<String, Error> {
        let mut digest = Sha256::new();
        let mut next = 0;
        for file in &self.files {
            let changed = || {
                let error = io::Error::other("it changed while it was read");
                Error::io("read", &file.path)(error)
            };
            let mut at = 0;
            file.parts(&self.field, &mut |part| {
                let length = *self.lengths.get(next).ok_or_else(changed)?;
                let cut = self.cut(next);
                match part {
                    Part::Start(name) => {
                        if self.held_out == Some(next) {
                            // A name that no file can have keeps the two texts apart.
                            head(&mut digest, "/", 0);
                        }
                        head(&mut digest, name, length);
                        at = 0;
                    }
                    Part::Text(text) => {
                        digest.update(text);
                        let split = cut.saturating_sub(at).min(text.len() as u64) as usize;
                        at += text.len() as u64;
                        for (split, text) in
                            [(Split::Training, &text[..split]), (Split::Validation, &text[split..])]
                        {
                            if !text.is_empty() {
                                sink.text(split, text)?;
                            }
                        }
                    }
                    Part::End => {
                        if at != length {
                            return Err(changed());
                        }
                        // Of a text that is cut, an empty part is no document.
                        let ends = match self.held_out {
                            Some(first) => [next < first, next >= first],
                            None => [cut > 0, cut < length],
                        };
                        for (split, ends) in
                            [Split::Training, Split::Validation].into_iter().zip(ends)
                        {
                            if ends {
                                sink.end(split)?;
                            }
                        }
                        next += 1;
                    }
                }
                Ok(())
            })?;
        }
        if next != self.lengths.len() {
            let path = self.files.last().map_or_else(PathBuf::new, |file| file.path.clone());
            return Err(Error::io("read", &path)(io::Error::other("it changed while it was read")));
        }
        Ok(hex(&digest.finalize()))
    }
}

/// What stands before a document's text in the identity.
fn head(digest: &mut Sha256, name: &str, length: u64) {
    digest.update((name.len() as u64).to_le_bytes());
    digest.update(name.as_bytes());
    digest.update(length.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::fs;
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;
    use crate::corpus::{Corpus, FIELD};

    /// Both splits as a corpus has them.
    #[derive(Default)]
    struct Whole {
        texts: [Vec<u8>; 2],
        ends: [Vec<usize>; 2],
    }

    impl Sink for Whole {
        fn text(&mut self, split: Split, text: &[u8]) -> Result<(), Error> {
            self.texts[split as usize].extend_from_slice(text);
            Ok(())
        }

        fn end(&mut self, split: Split) -> Result<(), Error> {
            let end = self.texts[split as usize].len();
            self.ends[split as usize].push(end);
            Ok(())
        }
    }

    fn same(training: &Path, validation: Option<&Path>) {
        let corpus = match validation {
            Some(path) => Corpus::from_paths(training, path, FIELD),
            None => Corpus::from_path(training, FIELD),
        };
        let corpus = corpus.expect("text");
        let streamed = Streamed::survey(training, validation, FIELD).expect("text");
        let mut whole = Whole::default();
        let sha256 = streamed.read(&mut whole).expect("the same text");
        assert_eq!(sha256, corpus.sha256);
        assert!(whole.texts == [corpus.training, corpus.validation], "{training:?}");
        assert_eq!(whole.ends, [corpus.training_ends, corpus.validation_ends], "{training:?}");
        assert_eq!(streamed.skipped, corpus.skipped);
        assert_eq!(streamed.not_utf8, corpus.not_utf8);
    }

    #[test]
    fn parts_are_the_text_of_a_corpus() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let folder = dir.path().join("folder");
        fs::create_dir(&folder).expect("room");
        let mut long = String::new();
        for n in 0..300_000 {
            let _ = writeln!(long, "{n} and \u{e4} more");
        }
        fs::write(folder.join("long.txt"), &long).expect("room");
        fs::write(folder.join("empty.txt"), "").expect("room");
        fs::write(folder.join("image"), [b'a', 0, 1]).expect("room");
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(long.as_bytes()).expect("memory");
        fs::write(folder.join("z.txt.gz"), packed.finish().expect("memory")).expect("room");
        fs::write(folder.join("latin-1.txt"), b"gr\xfcn\n").expect("room");
        same(&folder.join("long.txt"), None);
        same(&folder, None);
        let lines = dir.path().join("lines.jsonl");
        fs::write(&lines, "{\"text\": \"one\\ntwo\"}\n\n{\"text\": \"\"}\r\n{\"text\": \"3\"}")
            .expect("room");
        same(&lines, None);
        same(&folder, Some(&lines));
        same(&lines, Some(&folder.join("long.txt")));
        let many = dir.path().join("many.jsonl");
        fs::write(&many, "{\"text\": \"a document\"}\n".repeat(35)).expect("room");
        same(&many, None);
    }

    #[test]
    fn what_is_no_text_is_refused_as_ever() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("x");
        let survey = || Streamed::survey(&path, None, FIELD);
        assert!(matches!(survey(), Err(Error::DataMissing { .. })));
        fs::write(&path, "").expect("room");
        assert!(matches!(survey(), Err(Error::DataEmpty { .. })));
        fs::write(&path, [1, 2, 0]).expect("room");
        assert!(matches!(survey(), Err(Error::DataBinary { offset: 2, .. })));
        fs::write(&path, "some text").expect("room");
        let streamed = survey().expect("text");
        fs::write(&path, "some other text").expect("room");
        let error = streamed.read(&mut Whole::default()).expect_err("it changed").to_string();
        assert!(error.contains("changed while"), "{error}");
    }
}
