//! Programs as files: `program.osp`.
//!
//! ```text
//! offset  bytes  content, little-endian
//! 0       8      "ONESIGMA"
//! 8       4      version of this layout and of the program inside, `PROGRAM_VERSION`
//! 12      4      length of the description
//! 16      8      length of the program
//! 24      4      CRC-32 (ISO-HDLC, as in zip) of description and program
//! 28      ..     description: a JSON object of strings, for people and tools
//! ..      ..     the program in postcard's encoding
//! ```
//!
//! A file is taken whole or not at all: lengths, checksum, encoding, and then everything that
//! [`Program::validate`] checks, so that a damaged or hostile file is an error before anything
//! runs. The memory needed to read one is bounded by the size of the file; that of running it is
//! [`Program::arena_bytes`], which backends compare with what the device has.

use crate::{Error, Program, Result, program::PROGRAM_VERSION};
use std::collections::BTreeMap;

const MAGIC: &[u8; 8] = b"ONESIGMA";
const HEADER: usize = 28;
/// Descriptions are short.
const MAX_DESCRIPTION: usize = 1 << 20;

/// What a program file says about itself: names and texts, such as `recipe` and `producer`.
pub type Description = BTreeMap<String, String>;

fn invalid(reason: impl Into<String>) -> Error {
    Error::InvalidProgram { reason: reason.into() }
}

impl Program {
    /// The program as the bytes of a file; see [`file`](crate::file) for their layout.
    ///
    /// # Errors
    /// [`Error::InvalidProgram`] if the description is longer than 1 MiB.
    pub fn to_bytes(&self, description: &Description) -> Result<Vec<u8>> {
        let description =
            serde_json::to_vec(description).map_err(|error| invalid(error.to_string()))?;
        if description.len() > MAX_DESCRIPTION {
            return Err(invalid("the description is longer than 1 MiB"));
        }
        let program = postcard::to_allocvec(self)
            .map_err(|error| invalid(format!("not encoded: {error}")))?;
        let mut bytes = Vec::with_capacity(HEADER + description.len() + program.len());
        bytes.extend(MAGIC);
        bytes.extend(PROGRAM_VERSION.to_le_bytes());
        bytes.extend((description.len() as u32).to_le_bytes());
        bytes.extend((program.len() as u64).to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(description);
        bytes.extend(program);
        let checksum = crc32fast::hash(&bytes[HEADER..]).to_le_bytes();
        bytes[HEADER - 4..HEADER].copy_from_slice(&checksum);
        Ok(bytes)
    }

    /// Reads and validates a program file.
    ///
    /// # Errors
    /// [`Error::InvalidProgram`] if it is no such file, of another version, damaged, or holds a
    /// program that does not [`validate`](Self::validate).
    pub fn from_bytes(bytes: &[u8]) -> Result<(Self, Description)> {
        let (header, content) = bytes
            .split_first_chunk::<HEADER>()
            .ok_or_else(|| invalid(format!("{} bytes are no program file", bytes.len())))?;
        if !header.starts_with(MAGIC) {
            return Err(invalid("not a program file: it does not begin with `ONESIGMA`"));
        }
        let word = |at: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&header[at..at + 4]);
            u32::from_le_bytes(word)
        };
        if word(8) != PROGRAM_VERSION {
            let found = word(8);
            return Err(invalid(format!(
                "the file has version {found}, this library reads {PROGRAM_VERSION}; \
                 compile the program again"
            )));
        }
        let description_bytes = word(12) as usize;
        let program_bytes = u64::from(word(16)) | u64::from(word(20)) << 32;
        let expected = description_bytes as u64;
        if expected.checked_add(program_bytes) != Some(content.len() as u64)
            || description_bytes > MAX_DESCRIPTION
        {
            return Err(invalid(format!(
                "the file is cut or extended: {} bytes follow its header, which announces {}",
                content.len(),
                expected.saturating_add(program_bytes),
            )));
        }
        if crc32fast::hash(content) != word(24) {
            return Err(invalid("the file is damaged: its checksum does not fit"));
        }
        let (description, program) = content.split_at(description_bytes);
        let description = serde_json::from_slice(description)
            .map_err(|error| invalid(format!("its description is not readable: {error}")))?;
        let (program, rest): (Self, _) = postcard::take_from_bytes(program)
            .map_err(|error| invalid(format!("its content is not readable: {error}")))?;
        if !rest.is_empty() {
            return Err(invalid(format!("{} bytes follow the program", rest.len())));
        }
        program.validate()?;
        Ok((program, description))
    }
}
