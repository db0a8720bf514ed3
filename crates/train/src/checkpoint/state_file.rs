//! Safetensors files with state, mapped into memory: a tensor's bytes are read from the disk when
//! they are looked at, and copied nowhere but to the engine.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use onesigma_models::TensorFile;
use safetensors::tensor::{SafeTensors, TensorView};

use super::{Checkpoint, State, Tensor, VERSION, digest, format};
use crate::Error;

/// A checkpoint, or a safetensors file of another tool.
#[derive(Debug)]
pub struct StateFile {
    file: TensorFile,
    path: PathBuf,
}

/// A tensor of a file, not copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateTensor<'a> {
    /// Its name.
    pub name: String,
    /// Name of its format, such as `F32` or `E4M3`.
    pub format: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements, little-endian, row-major.
    pub bytes: &'a [u8],
}

impl StateTensor<'_> {
    /// The tensor in memory of its own.
    pub fn to_tensor(&self) -> Tensor {
        let Self { name, format, shape, bytes } = self;
        Tensor {
            name: name.clone(),
            format: format.clone(),
            shape: shape.clone(),
            bytes: bytes.to_vec(),
        }
    }
}

/// The metadata of a checkpoint.
type Header = HashMap<String, String>;

impl StateFile {
    /// Maps a file and checks that its header describes its length. The file must not be written
    /// to while it is mapped; replacing it by another is fine.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::CheckpointDamaged`] if it is no whole safetensors file.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = TensorFile::open(path).map_err(|error| match error {
            onesigma_models::Error::Io { source, .. } => Error::io("read", path)(source),
            onesigma_models::Error::TensorFile { reason, .. } => {
                Error::CheckpointDamaged { path: path.into(), reason }
            }
            other => Error::CheckpointDamaged { path: path.into(), reason: other.to_string() },
        })?;
        Ok(Self { file, path: path.into() })
    }

    pub(super) fn contents(&self) -> Contents<'_> {
        Contents { path: &self.path, bytes: self.file.bytes() }
    }

    /// The tensors, sorted by name: a checkpoint's with their exact formats, after its checksum was
    /// found right; those of other tools with the formats that safetensors names.
    ///
    /// # Errors
    /// [`Error::CheckpointDamaged`] for a wrong checksum or a type that no slot has,
    /// [`Error::CheckpointVersion`].
    pub fn tensors(&self) -> Result<Vec<StateTensor<'_>>, Error> {
        self.contents().tensors()
    }
}

/// The bytes of a file, and its name for messages.
#[derive(Clone, Copy)]
pub(super) struct Contents<'a> {
    pub path: &'a Path,
    pub bytes: &'a [u8],
}

impl<'a> Contents<'a> {
    fn damaged(&self, reason: String) -> Error {
        Error::CheckpointDamaged { path: self.path.into(), reason }
    }

    fn header(&self) -> Result<Header, Error> {
        let (_, metadata) = SafeTensors::read_metadata(self.bytes)
            .map_err(|error| self.damaged(format!("not a safetensors file ({error})")))?;
        Ok(metadata.metadata().clone().unwrap_or_default())
    }

    fn tensors(&self) -> Result<Vec<StateTensor<'a>>, Error> {
        let header = self.header()?;
        if header.contains_key("onesigma.version") {
            return Ok(self.checked(&header)?.1);
        }
        self.foreign()
    }

    pub(super) fn checkpoint(&self) -> Result<Checkpoint, Error> {
        let (state, tensors) = self.checked(&self.header()?)?;
        Ok(Checkpoint { state, tensors: tensors.iter().map(StateTensor::to_tensor).collect() })
    }

    /// What a checkpoint holds, if its checksum is right.
    fn checked(&self, header: &Header) -> Result<(State, Vec<StateTensor<'a>>), Error> {
        let entry = |name: &str| {
            header.get(name).ok_or_else(|| self.damaged(format!("its metadata has no `{name}`")))
        };
        let version: u32 = entry("onesigma.version")?
            .parse()
            .map_err(|_| self.damaged("its version is not a number".into()))?;
        if version != VERSION {
            let path = self.path.into();
            return Err(Error::CheckpointVersion { path, found: version, expected: VERSION });
        }
        let views = self.views()?;
        let (state, formats) = (entry("onesigma.state")?, entry("onesigma.formats")?);
        let found =
            digest(state, formats, views.iter().map(|(name, view)| (&name[..], view.data())));
        if *entry("onesigma.sha256")? != found {
            let reason = "its contents do not have the SHA-256 that it states";
            return Err(self.damaged(reason.into()));
        }
        let state = serde_json::from_str(state).map_err(|error| self.damaged(error.to_string()))?;
        let mut formats: BTreeMap<String, (String, Vec<usize>)> =
            serde_json::from_str(formats).map_err(|error| self.damaged(error.to_string()))?;
        let tensors = views
            .into_iter()
            .map(|(name, view)| {
                let (format, shape) = formats
                    .remove(&name)
                    .ok_or_else(|| self.damaged(format!("tensor `{name}` has no format")))?;
                Ok(StateTensor { name, format, shape, bytes: view.data() })
            })
            .collect::<Result<_, Error>>()?;
        Ok((state, tensors))
    }

    fn foreign(&self) -> Result<Vec<StateTensor<'a>>, Error> {
        let tensor = |(name, view): (String, TensorView<'a>)| {
            let dtype = view.dtype();
            let format = format(dtype)
                .ok_or_else(|| self.damaged(format!("tensor `{name}` has type {dtype:?}")))?
                .to_owned();
            Ok(StateTensor { name, format, shape: view.shape().to_vec(), bytes: view.data() })
        };
        self.views()?.into_iter().map(tensor).collect()
    }

    /// All tensors, sorted by name.
    fn views(&self) -> Result<Vec<(String, TensorView<'a>)>, Error> {
        let file = SafeTensors::deserialize(self.bytes)
            .map_err(|error| self.damaged(format!("not a whole safetensors file ({error})")))?;
        let mut views = file.tensors();
        views.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(views)
    }
}
