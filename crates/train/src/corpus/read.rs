//! Files as documents: text and JSON lines, plain or compressed.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use ruzstd::decoding::StreamingDecoder;

use super::utf8::Utf8;
use super::{Document, NotUtf8, files_below, relative_name};
use crate::Error;

/// Endings of files of JSON lines, before that of a compression.
const JSON_LINES: [&str; 3] = [".jsonl", ".ndjson", ".jsonlines"];
/// Endings of compressed files.
const COMPRESSED: [&str; 3] = [".gz", ".zst", ".zstd"];

/// Whether reading a file costs more than its bytes.
pub(super) fn is_costly(path: &Path) -> bool {
    let name = name_of(path);
    COMPRESSED.iter().chain(&JSON_LINES).any(|end| name.ends_with(end))
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase()
}

/// The files at a path, in their order: itself, or those below a folder.
pub(super) fn files(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let meta = fs::metadata(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => Error::DataMissing { path: path.into() },
        _ => Error::io("read", path)(source),
    })?;
    if meta.is_dir() { files_below(path) } else { Ok(vec![path.into()]) }
}

/// A file of text.
#[derive(Clone, Debug)]
pub(super) struct TextFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its name in the corpus.
    pub name: String,
    /// Whether its documents are lines of JSON.
    is_lines: bool,
    /// Whether it is no document where it is empty.
    may_be_empty: bool,
}

/// What a file consists of.
pub(super) enum Part<'a> {
    /// A document of this name begins.
    Start(&'a str),
    /// More of its text.
    Text(&'a [u8]),
    /// It ends.
    End,
}

/// Bytes that are read at once.
const PART: usize = 1 << 20;

/// The files at a path with their names.
pub(super) fn text_files(path: &Path) -> Result<Vec<TextFile>, Error> {
    let is_folder = path.is_dir();
    let of = |file: PathBuf| {
        let name = match is_folder {
            true => relative_name(path, &file),
            false => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        };
        let plain = name_of(&file);
        let plain = COMPRESSED.iter().find_map(|end| plain.strip_suffix(end)).unwrap_or(&plain);
        let is_lines = JSON_LINES.iter().any(|end| plain.ends_with(end));
        TextFile { path: file, name, is_lines, may_be_empty: is_folder }
    };
    Ok(files(path)?.into_iter().map(of).collect())
}

impl TextFile {
    /// Hands its documents to `each`, part by part; gives the place of the first byte that is not
    /// UTF-8, if there is one. `field` is that of JSON lines which holds the text.
    ///
    /// # Errors
    /// [`Error::DataBinary`] for a NUL byte; [`Error::Io`]; [`Error::Examples`]; those of `each`.
    pub fn parts(
        &self,
        field: &str,
        each: &mut dyn FnMut(Part<'_>) -> Result<(), Error>,
    ) -> Result<Option<usize>, Error> {
        let mut lines = Lines { file: self, field, pending: Vec::new(), count: 0 };
        let mut utf8 = Utf8::default();
        let mut read = 0;
        if !self.is_lines && !self.may_be_empty {
            each(Part::Start(&self.name))?;
        }
        stream(&self.path, &mut |part| {
            if let Some(at) = part.iter().position(|&byte| byte == 0) {
                return Err(Error::DataBinary { path: self.path.clone(), offset: read + at });
            }
            let is_first = read == 0;
            read += part.len();
            if self.is_lines {
                return lines.push(part, each);
            }
            if is_first && self.may_be_empty {
                each(Part::Start(&self.name))?;
            }
            utf8.push(part);
            each(Part::Text(part))
        })?;
        match (self.is_lines, read) {
            // What is not UTF-8 is no JSON either.
            (true, _) => lines.end(each)?,
            (false, 0) if self.may_be_empty => {}
            _ => each(Part::End)?,
        }
        Ok(utf8.end())
    }
}

/// What was found at a path.
pub(super) struct Found {
    /// Documents, in their order.
    pub documents: Vec<Document>,
    /// Files that are not text.
    pub skipped: Vec<PathBuf>,
    /// Files that are text of another encoding.
    pub not_utf8: Vec<NotUtf8>,
}

/// Reads the files at a path. `field` is that of JSON lines which holds the text.
pub(super) fn documents(path: &Path, field: &str) -> Result<Found, Error> {
    let mut documents: Vec<Document> = Vec::new();
    let (mut skipped, mut not_utf8) = (Vec::new(), Vec::new());
    for file in text_files(path)? {
        let known = documents.len();
        let read = file.parts(field, &mut |part| {
            match (part, documents.last_mut()) {
                (Part::Start(name), _) => {
                    documents.push(Document { name: name.to_owned(), text: Vec::new() });
                }
                (Part::Text(text), Some(last)) => last.text.extend_from_slice(text),
                _ => {}
            }
            Ok(())
        });
        match read {
            Ok(wrong) => not_utf8.extend(NotUtf8::at(&file.path, wrong)),
            Err(Error::DataBinary { .. }) if path.is_dir() => {
                documents.truncate(known);
                skipped.push(file.path);
            }
            Err(Error::DataBinary { offset, .. }) => {
                return Err(Error::DataBinary { path: path.into(), offset });
            }
            Err(error) => return Err(error),
        }
    }
    if documents.iter().all(|document| document.text.is_empty()) {
        return Err(Error::DataEmpty { path: path.into() });
    }
    Ok(Found { documents, skipped, not_utf8 })
}

/// The bytes of a file, decompressed, in parts.
fn stream(path: &Path, each: &mut dyn FnMut(&[u8]) -> Result<(), Error>) -> Result<(), Error> {
    let file = File::open(path).map_err(Error::io("read", path))?;
    let mut input = BufReader::with_capacity(PART, file);
    let name = name_of(path);
    if name.ends_with(".gz") {
        return pump(&mut MultiGzDecoder::new(input), Error::io("decompress", path), each);
    }
    if name.ends_with(".zst") || name.ends_with(".zstd") {
        return zstd(&mut input, path, each);
    }
    pump(&mut input, Error::io("read", path), each)
}

/// Everything that a reader has, in parts.
fn pump(
    input: &mut dyn Read,
    failed: impl FnOnce(io::Error) -> Error,
    each: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut buffer = vec![0; PART];
    loop {
        match input.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => each(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

/// Every frame of a file (RFC 8878, section 3.1), skippable ones left out.
fn zstd(
    input: &mut dyn BufRead,
    path: &Path,
    each: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let failed = |error: io::Error| Error::io("decompress", path)(error);
    while !input.fill_buf().map_err(failed)?.is_empty() {
        let mut magic = [0; 4];
        input.read_exact(&mut magic).map_err(failed)?;
        if u32::from_le_bytes(magic) & 0xffff_fff0 == 0x184d_2a50 {
            let mut length = [0; 4];
            input.read_exact(&mut length).map_err(failed)?;
            let length = u64::from(u32::from_le_bytes(length));
            let skipped = io::copy(&mut input.take(length), &mut io::sink()).map_err(failed)?;
            if skipped < length {
                return Err(failed(io::ErrorKind::UnexpectedEof.into()));
            }
            continue;
        }
        let mut whole = Cursor::new(magic).chain(&mut *input);
        let mut frame =
            StreamingDecoder::new(&mut whole).map_err(|error| failed(io::Error::other(error)))?;
        pump(&mut frame, failed, each)?;
        let stated = frame.decoder.get_checksum_from_data();
        if stated.is_some() && stated != frame.decoder.get_calculated_checksum() {
            let wrong = io::Error::new(io::ErrorKind::InvalidData, "its checksum is wrong");
            return Err(failed(wrong));
        }
    }
    Ok(())
}

/// Cuts lines of JSON out of parts; each line's text is a document of its own, closed by a line
/// end.
struct Lines<'a> {
    file: &'a TextFile,
    field: &'a str,
    /// The line that is not whole yet.
    pending: Vec<u8>,
    /// Lines before it.
    count: usize,
}

impl Lines<'_> {
    fn push(
        &mut self,
        mut part: &[u8],
        each: &mut dyn FnMut(Part<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        while let Some(at) = part.iter().position(|&byte| byte == b'\n') {
            self.pending.extend_from_slice(&part[..at]);
            self.end(each)?;
            part = &part[at + 1..];
        }
        self.pending.extend_from_slice(part);
        Ok(())
    }

    /// Takes the pending line as whole.
    fn end(&mut self, each: &mut dyn FnMut(Part<'_>) -> Result<(), Error>) -> Result<(), Error> {
        self.count += 1;
        let line = std::mem::take(&mut self.pending);
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        let text = text_of_line(&self.file.path, self.count, &line, self.field)?;
        each(Part::Start(&format!("{}#{}", self.file.name, self.count)))?;
        if !text.is_empty() {
            each(Part::Text(&text))?;
        }
        each(Part::End)
    }
}

/// The text of a line of JSON.
fn text_of_line(file: &Path, number: usize, line: &[u8], field: &str) -> Result<Vec<u8>, Error> {
    let wrong = |reason: String| Error::Examples { path: file.into(), line: number, reason };
    let value: serde_json::Value = serde_json::from_slice(line)
        .map_err(|error| wrong(format!("not a line of JSON ({error})")))?;
    let found = value.get(field).ok_or_else(|| {
        let known = value.as_object().map(|object| {
            object.keys().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ")
        });
        wrong(format!(
            "it has no field `{field}`, only {}; choose one with `--field`",
            known.unwrap_or_else(|| "a value that is no object".into())
        ))
    })?;
    let text = found
        .as_str()
        .ok_or_else(|| wrong(format!("its field `{field}` is {found}, expected a string")))?;
    let mut text = text.as_bytes().to_vec();
    if text.contains(&0) {
        return Err(wrong(format!("its field `{field}` holds a NUL character, no text")));
    }
    if text.last().is_some_and(|&last| last != b'\n') {
        text.push(b'\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text).expect("memory");
        encoder.finish().expect("memory")
    }

    fn read(name: &str, bytes: &[u8]) -> Result<Vec<(String, String)>, Error> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join(name);
        fs::write(&path, bytes).expect("room");
        let Found { documents, .. } = documents(&path, "text")?;
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Ok(documents.into_iter().map(|one| (one.name, text(one.text))).collect())
    }

    #[test]
    fn compressed_text_is_the_text() {
        let text = "a line\n".repeat(300);
        let zst = compress_to_vec(text.as_bytes(), CompressionLevel::Fastest);
        // Two members, or frames, with a frame between them that is to be skipped.
        let skipped = [&[0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"any"].concat();
        for (name, bytes) in [
            ("a.txt", text.repeat(2).into_bytes()),
            ("a.txt.gz", [gzip(text.as_bytes()), gzip(text.as_bytes())].concat()),
            ("a.txt.zst", [&zst[..], &skipped, &zst].concat()),
        ] {
            let found = read(name, &bytes).expect(name);
            assert_eq!(found, [(name.to_owned(), text.repeat(2))]);
        }
    }

    #[test]
    fn zstd_of_the_reference_encoder_is_read() {
        // Forty times "unit scaling ", by `zstd -19` 1.5, with its checksum.
        let bytes = [
            0x28, 0xb5, 0x2f, 0xfd, 0x04, 0x68, 0xa5, 0x00, 0x00, 0x68, 0x75, 0x6e, 0x69, 0x74,
            0x20, 0x73, 0x63, 0x61, 0x6c, 0x69, 0x6e, 0x67, 0x20, 0x01, 0x00, 0xf8, 0xa0, 0xce,
            0x2f, 0x34, 0x12, 0xa6, 0x6c,
        ];
        let found = read("a.zst", &bytes).expect("a frame");
        assert_eq!(found[0].1, "unit scaling ".repeat(40));
        let mut damaged = bytes;
        damaged[bytes.len() - 1] ^= 1;
        assert!(read("a.zst", &damaged).is_err());
    }

    #[test]
    fn each_line_of_json_is_a_document() {
        let text = "{\"text\": \"one\\ntwo\", \"id\": 1}\n\n{\"text\": \"three\\n\"}\r\n";
        let expected = [("a.jsonl", 1, "one\ntwo\n"), ("a.jsonl", 3, "three\n")];
        let expected = expected.map(|(name, n, text)| (format!("{name}#{n}"), text.to_owned()));
        assert_eq!(read("a.jsonl", text.as_bytes()).expect("lines"), expected);
        let packed = read("a.jsonl.gz", &gzip(text.as_bytes())).expect("lines");
        assert_eq!(packed.len(), 2);
    }

    #[test]
    fn broken_files_are_named_with_line_and_remedy() {
        let wrong = |name: &str, bytes: &[u8], words: &[&str]| {
            let error = read(name, bytes).expect_err(name).to_string();
            for word in words {
                assert!(error.contains(word), "no `{word}` in: {error}");
            }
        };
        wrong(
            "a.jsonl",
            b"{\"text\": \"x\"}\n{\"body\": \"y\", \"id\": 2}",
            &["line 2", "`body`", "--field"],
        );
        wrong("a.jsonl", b"{\"text\": 3}", &["line 1", "expected a string"]);
        wrong("a.jsonl", b"{\"text\": ", &["line 1", "not a line of JSON"]);
        let packed = gzip(b"some text that is cut");
        wrong("a.gz", &packed[..packed.len() - 9], &["cannot decompress", "a.gz"]);
        wrong("a.zst", b"no frame at all", &["cannot decompress", "a.zst"]);
        wrong("a.gz", &gzip(b""), &["holds no text"]);
        wrong("a.gz", &gzip(&[1, 0]), &["not text"]);
    }
}
