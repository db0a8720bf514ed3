//! Text with a fixed training and validation split and an identity.
//!
//! # The split
//! A document is a file, or a line of a file of JSON lines. A corpus of at least [`SPLIT_FILES`]
//! documents gives every [`SPLIT_EVERY`]th, in the fixed order, to validation: whole documents, so
//! that no passage is in both. With fewer the last tenth of each goes to validation, so that a
//! single book works too. With a validation text of its own ([`Corpus::from_paths`]) nothing is
//! cut.
//!
//! # The identity
//! SHA-256 over every file's name, length and bytes, in order. The corpus `cargo` has one value
//! for a given `Cargo.lock`, because the lock file pins the checksum of every package.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use sha2::{Digest, Sha256};

use crate::Error;

mod cargo;
mod read;
mod stream;
mod utf8;

pub use cargo::PACKAGES;
pub use stream::{Sink, Split, Streamed};

/// From this many files on, the split is by whole files.
pub const SPLIT_FILES: usize = 20;
/// One file in this many is validation text.
pub const SPLIT_EVERY: usize = 10;

/// Text in two splits.
///
/// ```
/// use onesigma_train::corpus::{Corpus, FIELD};
///
/// # let folder = tempfile::tempdir()?;
/// let path = folder.path().join("text.txt");
/// std::fs::write(&path, "a text of 26 bytes in all.")?;
/// let corpus = Corpus::from_path(&path, FIELD)?;
/// assert_eq!((corpus.training.len(), corpus.validation.len()), (24, 2));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corpus {
    /// What it was made from: `cargo`, or the path that was given.
    pub name: String,
    /// SHA-256 of names, lengths and contents, in hexadecimal.
    pub sha256: String,
    /// Number of files.
    pub files: usize,
    /// Files that were left out because they are not text, in order.
    pub skipped: Vec<PathBuf>,
    /// Files that are text of another encoding, in order.
    pub not_utf8: Vec<NotUtf8>,
    /// The text to train on.
    pub training: Vec<u8>,
    /// The text to measure on.
    pub validation: Vec<u8>,
    /// Where the documents of the training text end, ascending.
    pub training_ends: Vec<usize>,
    /// Where the documents of the validation text end, ascending.
    pub validation_ends: Vec<usize>,
}

/// A file of text that is not UTF-8, Latin-1 for example. Bytes as tokens take it as it is; other
/// tokenisers know characters, not bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotUtf8 {
    /// The file.
    pub path: PathBuf,
    /// Place in its text, unpacked, of the first byte that is not UTF-8.
    pub offset: usize,
}

impl NotUtf8 {
    fn at(path: &Path, offset: Option<usize>) -> Option<Self> {
        offset.map(|offset| Self { path: path.to_owned(), offset })
    }
}

/// The field of JSON lines that is read if nothing is said.
pub const FIELD: &str = "text";

/// One file of a corpus: a name that does not depend on the machine, and its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Path relative to the corpus, with `/` between the parts.
    pub name: String,
    /// The contents.
    pub text: Vec<u8>,
}

impl Corpus {
    /// The corpus that is always there: source and documentation of the [`PACKAGES`] that the
    /// Cargo workspace around `dir` has locked.
    ///
    /// Asks `cargo metadata` without the network first, and with it only if a package is missing.
    ///
    /// # Errors
    /// [`Error::NoWorkspace`] outside a workspace or in one that lacks a package of the list;
    /// [`Error::Io`] for a source file that cannot be read.
    pub fn cargo(dir: &Path) -> Result<Self, Error> {
        Ok(Self::from_documents("cargo", cargo::documents(dir)?, Vec::new()))
    }

    /// Text from a file, or from every text file below a folder, in the order of their paths.
    ///
    /// Files that end in `.gz` or `.zst` are decompressed; of `.jsonl` and `.ndjson` the string
    /// `field` of each line is a document. Files with a NUL byte are not text: in a folder they
    /// are left out and listed in [`Corpus::skipped`].
    ///
    /// # Errors
    /// [`Error::DataMissing`], [`Error::DataBinary`] (a single file), [`Error::DataEmpty`],
    /// [`Error::Examples`] for a line of JSON without the field, or [`Error::Io`] for what cannot
    /// be read.
    pub fn from_path(path: &Path, field: &str) -> Result<Self, Error> {
        let read::Found { documents, skipped, not_utf8 } = read::documents(path, field)?;
        let corpus = Self::from_documents(&path.to_string_lossy(), documents, skipped);
        Ok(Self { not_utf8, ..corpus })
    }

    /// All of the text at `training` to train on, all of that at `validation` to measure on. The
    /// identity covers both.
    ///
    /// # Errors
    /// As [`Corpus::from_path`], for either.
    pub fn from_paths(training: &Path, validation: &Path, field: &str) -> Result<Self, Error> {
        let read::Found { mut documents, mut skipped, mut not_utf8 } =
            read::documents(training, field)?;
        let held_out = read::documents(validation, field)?;
        skipped.extend(held_out.skipped);
        not_utf8.extend(held_out.not_utf8);
        let held_out = held_out.documents;
        let text = |documents: &[Document]| {
            let mut ends = Vec::with_capacity(documents.len());
            let mut all = Vec::new();
            for document in documents {
                all.extend_from_slice(&document.text);
                ends.push(all.len());
            }
            (all, ends)
        };
        let (training_text, training_ends) = text(&documents);
        let (validation_text, validation_ends) = text(&held_out);
        // A name that no file can have keeps the two parts apart in the identity.
        documents.push(Document { name: "/".into(), text: Vec::new() });
        documents.extend(held_out);
        Ok(Self {
            name: training.to_string_lossy().into_owned(),
            sha256: identity(&documents),
            files: documents.len() - 1,
            skipped,
            not_utf8,
            training: training_text,
            validation: validation_text,
            training_ends,
            validation_ends,
        })
    }

    /// Splits and identifies documents that are already in their final order.
    pub fn from_documents(name: &str, documents: Vec<Document>, skipped: Vec<PathBuf>) -> Self {
        let mut training = Vec::new();
        let mut validation = Vec::new();
        let (mut training_ends, mut validation_ends) = (Vec::new(), Vec::new());
        let by_file = documents.len() >= SPLIT_FILES;
        for (index, document) in documents.iter().enumerate() {
            let text = &document.text;
            let cut = match by_file {
                true if index % SPLIT_EVERY == SPLIT_EVERY - 1 => 0,
                true => text.len(),
                false => text.len() - text.len() / SPLIT_EVERY,
            };
            training.extend_from_slice(&text[..cut]);
            validation.extend_from_slice(&text[cut..]);
            for (end, ends) in
                [(training.len(), &mut training_ends), (validation.len(), &mut validation_ends)]
            {
                if end > ends.last().copied().unwrap_or(0) {
                    ends.push(end);
                }
            }
        }
        Self {
            name: name.into(),
            sha256: identity(&documents),
            files: documents.len(),
            skipped,
            not_utf8: Vec::new(),
            training,
            validation,
            training_ends,
            validation_ends,
        }
    }

    /// The documents of a split's text.
    pub fn documents_of<'a>(text: &'a [u8], ends: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
        let starts = std::iter::once(0).chain(ends.iter().copied());
        starts.zip(ends).map(|(start, &end)| &text[start..end])
    }

    /// Bytes in both splits.
    pub fn len(&self) -> usize {
        self.training.len() + self.validation.len()
    }

    /// Whether there is no text at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Name, size and time of the last change (nanoseconds since 1970) of a file.
pub type Stamp = (String, u64, u128);

/// What tells without reading them whether the files of a corpus are still the same, and whether
/// to read them costs more than their bytes.
///
/// # Errors
/// [`Error::DataMissing`]; [`Error::Io`].
pub fn stamps(path: &Path) -> Result<(Vec<Stamp>, bool), Error> {
    let mut stamps = Vec::new();
    let mut is_costly = false;
    for file in read::files(path)? {
        is_costly |= read::is_costly(&file);
        let meta = fs::metadata(&file).map_err(Error::io("read", &file))?;
        let changed = meta.modified().ok();
        let changed = changed.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let nanoseconds = changed.map_or(0, |time| time.as_nanos());
        stamps.push((relative_name(path, &file), meta.len(), nanoseconds));
    }
    Ok((stamps, is_costly))
}

/// SHA-256 over names, lengths and contents.
fn identity(documents: &[Document]) -> String {
    let mut digest = Sha256::new();
    for Document { name, text } in documents {
        digest.update((name.len() as u64).to_le_bytes());
        digest.update(name.as_bytes());
        digest.update((text.len() as u64).to_le_bytes());
        digest.update(text);
    }
    hex(&digest.finalize())
}

/// Lower-case hexadecimal digits of `bytes`.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `file` relative to `root`, with `/` on every system.
fn relative_name(root: &Path, file: &Path) -> String {
    let relative = file.strip_prefix(root).unwrap_or(file);
    let parts: Vec<_> = relative.iter().map(|part| part.to_string_lossy()).collect();
    parts.join("/")
}

/// Every regular file below `root`, sorted by relative name. Links to folders are not followed,
/// so that a loop cannot hang the walk.
fn files_below(root: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(Error::io("read", &folder))? {
            let entry = entry.map_err(Error::io("read", &folder))?;
            let path = entry.path();
            let kind = entry.file_type().map_err(Error::io("read", &path))?;
            if kind.is_dir() {
                folders.push(path);
            } else if path.is_file() {
                files.push(path);
            }
        }
    }
    files.sort_by_cached_key(|file| relative_name(root, file));
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents(count: usize, bytes: usize) -> Vec<Document> {
        (0..count)
            .map(|i| Document { name: format!("{i:03}.txt"), text: vec![b'a' + i as u8; bytes] })
            .collect()
    }

    #[test]
    fn many_files_are_split_by_whole_files() {
        let corpus = Corpus::from_documents("test", documents(20, 7), Vec::new());
        assert_eq!(corpus.validation, [[b'a' + 9; 7], [b'a' + 19; 7]].concat());
        assert_eq!(corpus.training.len(), 18 * 7);
        assert!(!corpus.training.contains(&(b'a' + 9)));
    }

    #[test]
    fn few_files_give_the_last_tenth_of_each() {
        let corpus = Corpus::from_documents("test", documents(2, 100), Vec::new());
        assert_eq!(corpus.training.len(), 180);
        assert_eq!(corpus.validation, [[b'a'; 10], [b'b'; 10]].concat());
    }

    #[test]
    fn the_identity_sees_names_contents_and_where_files_end() {
        let sha = |documents| Corpus::from_documents("test", documents, Vec::new()).sha256;
        let base = sha(documents(3, 10));
        assert_eq!(base, sha(documents(3, 10)));
        assert_eq!(base.len(), 64);
        let mut renamed = documents(3, 10);
        renamed[1].name.push('x');
        assert_ne!(base, sha(renamed));
        let mut moved = documents(3, 10);
        let byte = moved[0].text.pop().expect("ten bytes");
        moved[1].text.insert(0, byte);
        assert_ne!(base, sha(moved));
    }

    #[test]
    fn folders_are_read_in_order_and_binaries_left_out() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir(dir.path().join("b")).expect("a folder");
        fs::write(dir.path().join("c.txt"), "third").expect("a file");
        fs::write(dir.path().join("b/z.txt"), "second").expect("a file");
        fs::write(dir.path().join("a.txt"), "first").expect("a file");
        fs::write(dir.path().join("image.png"), [137, 0, 1]).expect("a file");
        fs::write(dir.path().join("empty"), "").expect("a file");
        let corpus = Corpus::from_path(dir.path(), FIELD).expect("text");
        assert_eq!(corpus.training, b"firstsecondthird");
        assert_eq!(corpus.files, 3);
        assert_eq!(corpus.skipped, [dir.path().join("image.png")]);
    }

    #[test]
    fn a_validation_text_of_its_own_leaves_the_training_text_whole() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (a, b) = (dir.path().join("a.txt"), dir.path().join("b.txt"));
        fs::write(&a, "0123456789").expect("a file");
        fs::write(&b, "abc").expect("a file");
        let corpus = Corpus::from_paths(&a, &b, FIELD).expect("text");
        assert_eq!(
            (&corpus.training[..], &corpus.validation[..]),
            (&b"0123456789"[..], &b"abc"[..])
        );
        let folder = Corpus::from_path(dir.path(), FIELD).expect("text");
        assert_ne!(corpus.sha256, folder.sha256);
        assert_ne!(corpus.sha256, Corpus::from_paths(&b, &a, FIELD).expect("text").sha256);
    }

    #[test]
    fn each_bad_path_has_its_own_error() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let missing = dir.path().join("missing");
        assert!(matches!(Corpus::from_path(&missing, FIELD), Err(Error::DataMissing { .. })));
        assert!(matches!(Corpus::from_path(dir.path(), FIELD), Err(Error::DataEmpty { .. })));
        let empty = dir.path().join("empty.txt");
        fs::write(&empty, "").expect("a file");
        assert!(matches!(Corpus::from_path(&empty, FIELD), Err(Error::DataEmpty { .. })));
        let binary = dir.path().join("binary");
        fs::write(&binary, [1, 2, 0]).expect("a file");
        assert!(matches!(
            Corpus::from_path(&binary, FIELD),
            Err(Error::DataBinary { offset: 2, .. })
        ));
        for error in [Corpus::from_path(&missing, FIELD), Corpus::from_path(&binary, FIELD)] {
            assert!(error.expect_err("bad").is_usage());
        }
    }
}
