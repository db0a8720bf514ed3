//! Checkpoints: one safetensors file each, written atomically, checked on the way in.
//!
//! The file `step-0000001000.safetensors` holds the state after 1000 steps. Its tensors are plain
//! safetensors, so that any tool reads the weights; its metadata has `onesigma.version`,
//! `onesigma.state` (a [`State`] as JSON), `onesigma.formats` (the exact format of each tensor,
//! since safetensors cannot name all of them) and `onesigma.sha256` over all of it.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use onesigma_format::{Format, decode_slice};
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::corpus::hex;
use crate::{Error, atomic};

mod state_file;

pub use state_file::{StateFile, StateTensor};

/// The version that this code writes and reads.
pub const VERSION: u32 = 1;

/// What a run needs beside its tensors to continue.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Steps taken.
    pub step: u64,
    /// The run's configuration.
    pub config: serde_json::Value,
    /// Identity of the text it trains on.
    pub corpus_sha256: String,
}

/// One tensor as the engine stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its name in the program.
    pub name: String,
    /// Name of its format, such as `F32` or `E4M3`.
    pub format: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements, little-endian, row-major.
    pub bytes: Vec<u8>,
}

impl Tensor {
    /// The tensor without its memory.
    pub fn borrowed(&self) -> StateTensor<'_> {
        let Self { name, format, shape, bytes } = self;
        StateTensor { name: name.clone(), format: format.clone(), shape: shape.clone(), bytes }
    }

    /// Its elements as f32; `None` for integers or a format that is not known.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        let format: Format = self.format.parse().ok()?;
        let mut values = vec![0.0; self.shape.iter().product()];
        decode_slice(format, &self.bytes, &mut values).ok()?;
        Some(values)
    }
}

/// A state and its tensors, sorted by name.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Everything but the tensors.
    pub state: State,
    /// The tensors, in the order of their names.
    pub tensors: Vec<Tensor>,
}

impl Checkpoint {
    /// The file name of a checkpoint after `step` steps; names sort as steps do.
    pub fn file_name(step: u64) -> String {
        format!("step-{step:010}.safetensors")
    }

    /// Writes the checkpoint into `folder` and then deletes all but the newest `keep` (at least
    /// one); returns its path.
    ///
    /// # Errors
    /// [`Error::Io`], for example on a full disk: then every older checkpoint is still there.
    /// [`Error::Setting`] if a tensor's bytes do not fit its shape.
    pub fn save(&self, folder: &Path, keep: usize) -> Result<PathBuf, Error> {
        let path = folder.join(Self::file_name(self.state.step));
        self.write(&path)?;
        for old in list(folder)?.into_iter().rev().skip(keep.max(1)) {
            fs::remove_file(&old).map_err(Error::io("remove", &old))?;
        }
        Ok(path)
    }

    /// Writes the checkpoint to a file.
    ///
    /// # Errors
    /// As [`save`](Self::save).
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        atomic::write(path, &self.to_bytes()?)
    }

    /// Reads one checkpoint that was named by the caller.
    ///
    /// # Errors
    /// [`Error::CheckpointMissing`], [`Error::CheckpointDamaged`] or
    /// [`Error::CheckpointVersion`]; [`Error::Io`] if it cannot be read.
    pub fn load(path: &Path) -> Result<Self, Error> {
        if !path.exists() {
            return Err(Error::CheckpointMissing { path: path.into() });
        }
        let file = StateFile::open(path)?;
        file.contents().checkpoint()
    }

    /// The newest checkpoint in `folder` that is whole, with its path, and a warning for each
    /// newer one that is not. A file that was being written when the run died has another name and
    /// is not looked at.
    ///
    /// # Errors
    /// [`Error::CheckpointMissing`] if there is none; [`Error::NoWholeCheckpoint`];
    /// [`Error::Io`] if the folder cannot be read.
    pub fn latest(folder: &Path) -> Result<(PathBuf, Self, Vec<String>), Error> {
        let mut warnings = Vec::new();
        for path in list(folder)?.into_iter().rev() {
            match Self::load(&path) {
                Ok(checkpoint) => return Ok((path, checkpoint, warnings)),
                Err(Error::CheckpointDamaged { path, reason }) => {
                    warnings.push(format!("checkpoint {} is damaged: {reason}", path.display()));
                }
                Err(error) => warnings.push(error.to_string()),
            }
        }
        match warnings.first() {
            None => Err(Error::CheckpointMissing { path: folder.into() }),
            Some(reason) => Err(Error::NoWholeCheckpoint {
                folder: folder.into(),
                count: warnings.len(),
                reason: reason.clone(),
            }),
        }
    }

    /// The file's contents.
    fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let mut views = Vec::with_capacity(self.tensors.len());
        for tensor in &self.tensors {
            let dtype = dtype(&tensor.format);
            // A format that safetensors cannot name is stored as what it is on the wire: bytes.
            let shape =
                if dtype == Dtype::U8 { vec![tensor.bytes.len()] } else { tensor.shape.clone() };
            let view =
                TensorView::new(dtype, shape, &tensor.bytes).map_err(|error| Error::Setting {
                    name: "checkpoint tensor",
                    given: format!("{} of {:?} {}", tensor.name, tensor.shape, tensor.format),
                    expected: format!("as many bytes as its shape needs ({error})"),
                })?;
            views.push((tensor.name.as_str(), view));
        }
        let formats: BTreeMap<&str, (&str, &[usize])> = self
            .tensors
            .iter()
            .map(|tensor| (tensor.name.as_str(), (tensor.format.as_str(), &tensor.shape[..])))
            .collect();
        let invalid = |error: String| Error::Setting {
            name: "checkpoint state",
            given: error,
            expected: "a value with a JSON form".into(),
        };
        let state = serde_json::to_string(&self.state).map_err(|e| invalid(e.to_string()))?;
        let formats = serde_json::to_string(&formats).map_err(|e| invalid(e.to_string()))?;
        let tensors = self.tensors.iter().map(|tensor| (&tensor.name[..], &tensor.bytes[..]));
        let metadata = HashMap::from([
            ("onesigma.version".to_owned(), VERSION.to_string()),
            ("onesigma.sha256".to_owned(), digest(&state, &formats, tensors)),
            ("onesigma.state".to_owned(), state),
            ("onesigma.formats".to_owned(), formats),
        ]);
        safetensors::serialize(views, Some(metadata)).map_err(|e| invalid(e.to_string()))
    }
}

/// Writes tensors alone as a safetensors file, for [`StateFile`] and other tools.
///
/// # Errors
/// [`Error::Io`]; [`Error::Setting`] if a tensor's bytes do not fit its shape.
pub fn write_tensors(path: &Path, tensors: Vec<Tensor>) -> Result<(), Error> {
    let checkpoint = Checkpoint { state: State::default(), tensors };
    atomic::write(path, &checkpoint.to_bytes()?)
}

/// Checkpoint files in `folder`, oldest first; temporary and foreign files are left out.
fn list(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(folder).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => Error::CheckpointMissing { path: folder.into() },
        _ => Error::io("read", folder)(source),
    })?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::io("read", folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let step = name.strip_prefix("step-").and_then(|rest| rest.strip_suffix(".safetensors"));
        if step.is_some_and(|step| step.parse::<u64>().is_ok()) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The safetensors type of a format, or bytes where it has none.
fn dtype(format: &str) -> Dtype {
    match format {
        "F32" => Dtype::F32,
        "F16" => Dtype::F16,
        "BF16" => Dtype::BF16,
        "E4M3" => Dtype::F8_E4M3,
        "E5M2" => Dtype::F8_E5M2,
        "U32" => Dtype::U32,
        _ => Dtype::U8,
    }
}

/// The format of a safetensors type.
fn format(dtype: Dtype) -> Option<&'static str> {
    ["F32", "F16", "BF16", "E4M3", "E5M2", "U32"]
        .into_iter()
        .find(|name| self::dtype(name) == dtype)
}

/// SHA-256 over the state, the formats and every tensor, by name, each with its length before it.
fn digest<'a>(
    state: &str,
    formats: &str,
    tensors: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> String {
    let mut tensors: Vec<_> = tensors.collect();
    tensors.sort_by_key(|(name, _)| *name);
    let mut digest = Sha256::new();
    let mut part = |bytes: &[u8]| {
        digest.update((bytes.len() as u64).to_le_bytes());
        digest.update(bytes);
    };
    part(state.as_bytes());
    part(formats.as_bytes());
    for (name, bytes) in tensors {
        part(name.as_bytes());
        part(bytes);
    }
    hex(&digest.finalize())
}

#[cfg(test)]
mod tests;
