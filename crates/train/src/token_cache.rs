//! Texts that are tokenised once and then mapped into memory.
//!
//! A cache is a folder: `index.json` says what it was made from, and each split is a row of files
//! `training-00000.tokens`, .. of at most [`SHARD_BYTES`]. A file starts with 32 bytes:
//!
//! ```text
//! magic "OSTOKENS" | u32 version | u32 bytes of a token | u64 tokens | u32 CRC-32 of the tokens | 4 bytes 0
//! ```
//!
//! all little-endian, then the tokens. Every checksum is verified when the cache is opened. A
//! cache is made beside its place and renamed, so that it is whole or not there.

use std::fs::{self, File};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::corpus::{Sink, Split, Stamp, Streamed, hex};
use crate::text::{Encoding, Tokenizer};
use crate::tokens::{Shard, Tokens};
use crate::{Error, atomic};

/// The version that this code writes and reads.
pub const VERSION: u32 = 1;
/// Tokens of a file take at most so many bytes.
pub const SHARD_BYTES: usize = 256 << 20;

const MAGIC: &[u8; 8] = b"OSTOKENS";
const HEADER: usize = 32;
const INDEX: &str = "index.json";

/// What a cache is made from; a change of any of it makes another cache or a new one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Absolute path of the data.
    pub data: String,
    /// Absolute path of the validation text, if it is one of its own.
    pub valid: Option<String>,
    /// Field of JSON lines.
    pub field: String,
    /// SHA-256 of the tokeniser, or `bytes`.
    pub tokenizer: String,
    /// Every file with its size and the time of its last change.
    pub files: Vec<Stamp>,
}

impl Source {
    /// Name of its folder: sources that differ in more than the state of their files differ in it.
    pub fn folder_name(&self) -> String {
        let mut digest = Sha256::new();
        let valid = self.valid.as_deref().unwrap_or("");
        for part in [&self.data, valid, &self.field, &self.tokenizer] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part.as_bytes());
        }
        let stem = Path::new(&self.data).file_name().unwrap_or_default().to_string_lossy();
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        let stem: String = stem.chars().map(plain).take(32).collect();
        format!("{stem}-{}", &hex(&digest.finalize())[..16])
    }
}

/// `index.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// [`VERSION`].
    pub version: u32,
    /// What it was made from.
    pub source: Source,
    /// Identity of the text, see [`Corpus::sha256`](crate::corpus::Corpus::sha256).
    pub corpus_sha256: String,
    /// Bytes of text.
    pub text_bytes: u64,
    /// Documents.
    pub documents: u64,
    /// Number of distinct tokens.
    pub vocabulary: u64,
    /// Tokens to train on.
    pub training: u64,
    /// Tokens to measure on.
    pub validation: u64,
    /// CRC-32 of every file of tokens, training first.
    pub checksums: Vec<u32>,
    /// CRC-32 of this index in compact JSON with 0 in this place.
    pub crc32: u32,
}

impl Index {
    fn own_checksum(&self) -> u32 {
        let bare = Self { crc32: 0, ..self.clone() };
        crc32fast::hash(&serde_json::to_vec(&bare).unwrap_or_default())
    }
}

/// An open cache.
#[derive(Clone, Debug)]
pub struct Cached {
    /// What it says of itself.
    pub index: Index,
    /// Tokens to train on.
    pub training: Tokens,
    /// Tokens to measure on.
    pub validation: Tokens,
}

/// What is at the place of a cache.
#[derive(Debug)]
pub enum Found {
    /// The cache, verified.
    Whole(Box<Cached>),
    /// Nothing.
    Nothing,
    /// One that has to be made anew, and why.
    Useless(String),
}

/// Opens the cache of a source below `root`.
pub fn open(root: &Path, source: &Source) -> Found {
    let folder = root.join(source.folder_name());
    if !folder.join(INDEX).is_file() {
        return Found::Nothing;
    }
    match read(&folder) {
        Ok(cached) if cached.index.source == *source => Found::Whole(Box::new(cached)),
        Ok(_) => Found::Useless("the text has changed".into()),
        Err(reason) => Found::Useless(reason),
    }
}

/// Reads and verifies a cache folder; the error says what is wrong with it.
///
/// # Errors
/// The reason, for people.
pub fn read(folder: &Path) -> Result<Cached, String> {
    let text = fs::read(folder.join(INDEX)).map_err(|error| format!("no index ({error})"))?;
    let index: Index =
        serde_json::from_slice(&text).map_err(|error| format!("its index is damaged ({error})"))?;
    if index.version != VERSION {
        return Err(format!("it has version {}, not {VERSION}", index.version));
    }
    if index.crc32 != index.own_checksum() {
        return Err("its index does not have the checksum that it states".into());
    }
    let mut checksums = index.checksums.iter();
    let mut split = |name: &str, tokens: u64| -> Result<Tokens, String> {
        let mut shards = Vec::new();
        let mut first = 0;
        while (first as u64) < tokens {
            let path = shard_path(folder, name, shards.len());
            let shard = map(&path, first, checksums.next().copied())
                .map_err(|reason| format!("{} is damaged: {reason}", path.display()))?;
            first += shard.count;
            shards.push(shard);
        }
        match first as u64 == tokens {
            true => Ok(Tokens::mapped(shards)),
            false => Err(format!("it has {first} {name} tokens, not {tokens}")),
        }
    };
    let training = split("training", index.training)?;
    let validation = split("validation", index.validation)?;
    Ok(Cached { index, training, validation })
}

fn shard_path(folder: &Path, split: &str, number: usize) -> PathBuf {
    folder.join(format!("{split}-{number:05}.tokens"))
}

/// Maps a file of tokens and verifies it.
fn map(path: &Path, first: usize, checksum: Option<u32>) -> Result<Shard, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    // SAFETY: the map is only read, and nothing here changes a cache in place: a new one takes the
    // name of the old. A process that shortens the file meanwhile ends this one with a signal; it
    // cannot corrupt memory, since every byte is a valid u8.
    #[allow(unsafe_code)]
    let map = unsafe { Mmap::map(&file) }.map_err(|error| error.to_string())?;
    if map.len() < HEADER || &map[..8] != MAGIC {
        return Err("no file of tokens".into());
    }
    let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|n| map[at + n]));
    let count = u64::from(word(16)) | u64::from(word(20)) << 32;
    let (version, width) = (word(8), word(12));
    if version != VERSION || ![1, 2, 4].contains(&width) {
        return Err(format!("it has version {version} and tokens of {width} bytes"));
    }
    let bytes = count.checked_mul(u64::from(width)).filter(|&bytes| bytes > 0);
    if bytes != Some((map.len() - HEADER) as u64) {
        return Err(format!("it says {count} tokens and has {} bytes", map.len() - HEADER));
    }
    let found = crc32fast::hash(&map[HEADER..]);
    if found != word(24) || checksum.is_some_and(|expected| expected != found) {
        return Err("its tokens do not have the checksum that it states".into());
    }
    Ok(Shard { map, header: HEADER, width: width as usize, first, count: count as usize })
}

/// Makes the cache of a source below `root` from its text, in place of the one that is there. The
/// text is read in parts, so that it may be larger than the memory.
///
/// # Errors
/// [`Error::Io`], for example on a full disk: then nothing is left; [`Error::Tokenizer`].
pub fn build(
    root: &Path,
    source: &Source,
    text: &Streamed,
    tokenizer: &Tokenizer,
    shard_bytes: usize,
) -> Result<Cached, Error> {
    let folder = root.join(source.folder_name());
    let beside = root.join(format!("{}.{}.tmp", source.folder_name(), std::process::id()));
    let result = fill(&beside, source, text, tokenizer, shard_bytes).and_then(|()| {
        // What is there is older. Another process may be faster: then its cache is as good.
        let _ = fs::remove_dir_all(&folder);
        match fs::rename(&beside, &folder) {
            Err(_) if folder.join(INDEX).is_file() => Ok(()),
            result => result.map_err(Error::io("make", &folder)),
        }
    });
    // Gone after the rename; after an error the error is what matters.
    let _ = fs::remove_dir_all(&beside);
    result?;
    read(&folder).map_err(|reason| Error::Config { path: folder, reason })
}

/// Both splits while they are written.
struct Filler<'a> {
    encodings: [Encoding<'a>; 2],
    writers: [ShardWriter<'a>; 2],
    documents: u64,
}

impl Sink for Filler<'_> {
    fn text(&mut self, split: Split, text: &[u8]) -> Result<(), Error> {
        let writer = &mut self.writers[split as usize];
        self.encodings[split as usize].push(text, &mut |ids| writer.write(ids))
    }

    fn end(&mut self, split: Split) -> Result<(), Error> {
        let writer = &mut self.writers[split as usize];
        self.documents += 1;
        self.encodings[split as usize].end(&mut |ids| writer.write(ids))
    }
}

fn fill(
    folder: &Path,
    source: &Source,
    text: &Streamed,
    tokenizer: &Tokenizer,
    shard_bytes: usize,
) -> Result<(), Error> {
    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let vocabulary = tokenizer.vocabulary();
    let width = match vocabulary {
        0..=0x100 => 1,
        0x101..=0x1_0000 => 2,
        _ => 4,
    };
    let writer = |name| ShardWriter {
        folder,
        name,
        width,
        capacity: (shard_bytes / width).max(1),
        open: None,
        checksums: Vec::new(),
        shards: 0,
        total: 0,
    };
    let mut filler = Filler {
        encodings: [tokenizer.begin(), tokenizer.begin()],
        writers: ["training", "validation"].map(writer),
        documents: 0,
    };
    let corpus_sha256 = text.read(&mut filler)?;
    let [training, validation] = filler.writers;
    let (training, mut checksums) = training.end()?;
    let (validation, more) = validation.end()?;
    checksums.extend(more);
    let mut index = Index {
        version: VERSION,
        source: source.clone(),
        corpus_sha256,
        text_bytes: text.bytes(),
        documents: filler.documents,
        vocabulary: vocabulary as u64,
        training,
        validation,
        checksums,
        crc32: 0,
    };
    index.crc32 = index.own_checksum();
    let path = folder.join(INDEX);
    let text = serde_json::to_vec_pretty(&index)
        .map_err(|error| Error::Config { path: path.clone(), reason: error.to_string() })?;
    atomic::write(&path, &text)
}

/// Writes one split into files of at most `capacity` tokens.
struct ShardWriter<'a> {
    folder: &'a Path,
    name: &'a str,
    width: usize,
    capacity: usize,
    open: Option<OpenShard>,
    checksums: Vec<u32>,
    shards: usize,
    total: u64,
}

struct OpenShard {
    path: PathBuf,
    file: BufWriter<File>,
    digest: crc32fast::Hasher,
    count: usize,
}

impl ShardWriter<'_> {
    fn write(&mut self, mut ids: &[u32]) -> Result<(), Error> {
        while !ids.is_empty() {
            if self.open.as_ref().is_some_and(|open| open.count == self.capacity) {
                self.close()?;
            }
            let open = match &mut self.open {
                Some(open) => open,
                none => {
                    let path = shard_path(self.folder, self.name, self.shards);
                    let make = || -> std::io::Result<_> {
                        let mut file = BufWriter::new(File::create(&path)?);
                        file.write_all(&[0; HEADER])?;
                        Ok(file)
                    };
                    let file = make().map_err(Error::io("write", &path))?;
                    self.shards += 1;
                    none.insert(OpenShard {
                        path,
                        file,
                        digest: crc32fast::Hasher::new(),
                        count: 0,
                    })
                }
            };
            let (now, later) = ids.split_at(ids.len().min(self.capacity - open.count));
            let mut bytes = Vec::with_capacity(now.len() * self.width);
            for id in now {
                bytes.extend_from_slice(&id.to_le_bytes()[..self.width]);
            }
            open.digest.update(&bytes);
            open.file.write_all(&bytes).map_err(Error::io("write", &open.path))?;
            open.count += now.len();
            self.total += now.len() as u64;
            ids = later;
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), Error> {
        let Some(OpenShard { path, file, digest, count }) = self.open.take() else { return Ok(()) };
        let checksum = digest.finalize();
        let mut header = MAGIC.to_vec();
        header.extend(VERSION.to_le_bytes());
        header.extend((self.width as u32).to_le_bytes());
        header.extend((count as u64).to_le_bytes());
        header.extend(checksum.to_le_bytes());
        let write = || -> std::io::Result<()> {
            let mut file = file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&header)?;
            file.sync_all()
        };
        write().map_err(Error::io("write", &path))?;
        self.checksums.push(checksum);
        Ok(())
    }

    /// Number of tokens, and the checksums of the files.
    fn end(mut self) -> Result<(u64, Vec<u32>), Error> {
        self.close()?;
        Ok((self.total, self.checksums))
    }
}

/// Names and indices of the caches below `root`; those that cannot be read with the reason.
///
/// # Errors
/// [`Error::Io`].
pub fn list(root: &Path) -> Result<Vec<(PathBuf, Result<Index, String>)>, Error> {
    let mut caches = Vec::new();
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(caches),
        Err(error) => return Err(Error::io("read", root)(error)),
    };
    for entry in entries {
        let folder = entry.map_err(Error::io("read", root))?.path();
        if folder.join(INDEX).is_file() {
            let index = read(&folder).map(|cached| cached.index);
            caches.push((folder, index));
        }
    }
    caches.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(caches)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Sampler;
    use crate::corpus::{Corpus, Document, FIELD, stamps};

    fn text() -> String {
        (0..4000).map(|n| format!("{n} and {}\n", n * n)).collect()
    }

    fn source(path: &Path) -> Source {
        Source {
            data: path.display().to_string(),
            valid: None,
            field: FIELD.into(),
            tokenizer: "bytes".into(),
            files: stamps(path).expect("a file").0,
        }
    }

    fn streamed(path: &Path) -> Streamed {
        Streamed::survey(path, None, FIELD).expect("text")
    }

    #[test]
    fn a_cache_gives_the_batches_of_the_text_across_shards() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("text.txt");
        fs::write(&path, text()).expect("room");
        let corpus = Corpus::from_path(&path, FIELD).expect("text");
        let root = dir.path().join("cache");
        assert!(matches!(open(&root, &source(&path)), Found::Nothing));
        // Shards of a prime length, so that windows cross their edges.
        let built = build(&root, &source(&path), &streamed(&path), &Tokenizer::Bytes, 997);
        let built = built.expect("room");
        assert!(built.index.checksums.len() > 20);
        let Found::Whole(cached) = open(&root, &source(&path)) else { panic!("no cache") };
        assert_eq!(cached.index, built.index);
        let bytes: Vec<u32> = corpus.validation.iter().map(|&byte| byte.into()).collect();
        assert_eq!(cached.validation.to_vec(), bytes);

        let direct: Vec<u16> = corpus.training.iter().map(|&byte| byte.into()).collect();
        let sampler = |tokens: Tokens| Sampler::new(tokens, "training", 3, 50, 7).expect("enough");
        let (mut mapped, mut direct) = (sampler(cached.training), sampler(direct.into()));
        // Over several epochs, and in any order.
        for step in (0..2000).chain([3, 77, 1500]) {
            assert_eq!(mapped.batch(step), direct.batch(step));
        }
    }

    #[test]
    fn damage_and_change_are_noticed_wherever_they_are() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("text.txt");
        fs::write(&path, text()).expect("room");
        let root = dir.path().join("cache");
        let make = || {
            build(&root, &source(&path), &streamed(&path), &Tokenizer::Bytes, 1 << 20)
                .expect("room")
        };
        make();
        let folder = root.join(source(&path).folder_name());
        for name in ["training-00000.tokens", "validation-00000.tokens", INDEX] {
            let file = folder.join(name);
            let whole = fs::read(&file).expect("a part of the cache");
            let header_and_more = (0..28).chain((32..whole.len()).step_by(whole.len() / 50 + 1));
            for at in header_and_more {
                let mut damaged = whole.clone();
                damaged[at] ^= 0x11;
                fs::write(&file, damaged).expect("room");
                assert!(!matches!(open(&root, &source(&path)), Found::Whole(_)), "{name} {at}");
            }
            for length in [0, 5, 31, whole.len() - 1] {
                fs::write(&file, &whole[..length]).expect("room");
                assert!(!matches!(open(&root, &source(&path)), Found::Whole(_)), "{name} {length}");
            }
            fs::remove_file(&file).expect("its own file");
            assert!(!matches!(open(&root, &source(&path)), Found::Whole(_)), "{name}");
            make();
            assert!(matches!(open(&root, &source(&path)), Found::Whole(_)), "{name}");
        }
        fs::write(&path, text() + "more").expect("room");
        let Found::Useless(reason) = open(&root, &source(&path)) else { panic!("another text") };
        assert!(reason.contains("changed"), "{reason}");
        assert_eq!(list(&root).expect("a folder").len(), 1);
    }

    #[test]
    fn documents_end_where_the_text_says() {
        let documents = (0..3)
            .map(|n| Document { name: n.to_string(), text: vec![b'a' + n; 20] })
            .collect::<Vec<_>>();
        let corpus = Corpus::from_documents("test", documents, Vec::new());
        let parts: Vec<&[u8]> =
            Corpus::documents_of(&corpus.training, &corpus.training_ends).collect();
        assert_eq!(parts, [[b'a'; 18], [b'b'; 18], [b'c'; 18]]);
    }
}
