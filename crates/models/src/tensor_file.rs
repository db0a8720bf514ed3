//! Weights in safetensors files: read through a memory map, so that a tensor is touched only when
//! it is asked for; written in any format that safetensors names.

use crate::{Error, Result};
use memmap2::Mmap;
use onesigma_format::{Conversion, Format, Noise, decode_slice, encode_slice};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// A tensor of weights in f32, whatever it was stored in.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// Elements, row-major.
    pub values: Vec<f32>,
}

/// Weights by the names of parameters.
pub type Weights = BTreeMap<String, Tensor>;

/// Formats with a name in safetensors.
const STORED: [(Format, Dtype); 5] = [
    (Format::F32, Dtype::F32),
    (Format::F16, Dtype::F16),
    (Format::BF16, Dtype::BF16),
    (Format::E4M3, Dtype::F8_E4M3),
    (Format::E5M2, Dtype::F8_E5M2),
];

/// A safetensors file that is mapped into memory.
///
/// ```
/// use onesigma_format::Format;
/// use onesigma_models::{Tensor, TensorFile, write_tensors};
///
/// # let folder = tempfile::tempdir()?;
/// let path = folder.path().join("model.safetensors");
/// let tensor = Tensor { shape: vec![2], values: vec![0.3, 1.0] };
/// write_tensors(&path, [("w", &tensor)], Format::E4M3, Default::default())?;
/// let file = TensorFile::open(&path)?;
/// assert_eq!(file.read("w")?.values, [0.3125, 1.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct TensorFile {
    map: Mmap,
    path: PathBuf,
}

impl TensorFile {
    /// Maps a file and checks its header. The file must not change while it is mapped.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::TensorFile`] if it is no whole safetensors file.
    pub fn open(path: &Path) -> Result<Self> {
        let io = |source| Error::Io { action: "read", path: path.into(), source };
        let file = File::open(path).map_err(io)?;
        // SAFETY: the map is only read. A process that shortens the file meanwhile ends this one
        // with a signal, as the documentation of this function says; it cannot corrupt memory
        // beyond that, since every byte is a valid u8 and numbers are decoded from copies.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let found = Self { map, path: path.into() };
        found.parse()?;
        Ok(found)
    }

    /// All bytes of the file; they are read from the disk when they are looked at.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    fn parse(&self) -> Result<SafeTensors<'_>> {
        SafeTensors::deserialize(&self.map).map_err(|error| self.damaged(error.to_string()))
    }

    fn damaged(&self, reason: String) -> Error {
        Error::TensorFile { path: self.path.clone(), reason }
    }

    /// Names of the tensors with their shapes.
    ///
    /// # Errors
    /// [`Error::TensorFile`].
    pub fn shapes(&self) -> Result<BTreeMap<String, Vec<usize>>> {
        let file = self.parse()?;
        Ok(file.tensors().into_iter().map(|(name, view)| (name, view.shape().to_vec())).collect())
    }

    /// A tensor in f32.
    ///
    /// # Errors
    /// [`Error::TensorFile`] if there is none of that name, or it is not of floats.
    pub fn read(&self, name: &str) -> Result<Tensor> {
        let file = self.parse()?;
        let view = file.tensor(name).map_err(|error| self.damaged(format!("`{name}`: {error}")))?;
        let dtype = view.dtype();
        let format = STORED.iter().find(|(_, stored)| *stored == dtype).map(|(format, _)| *format);
        let format = format.ok_or_else(|| {
            self.damaged(format!(
                "`{name}` has type {dtype:?}, expected a float of 32 bits or less"
            ))
        })?;
        let shape = view.shape().to_vec();
        let mut values = vec![0.0; shape.iter().product()];
        decode_slice(format, view.data(), &mut values)
            .map_err(|error| self.damaged(format!("`{name}`: {error}")))?;
        Ok(Tensor { shape, values })
    }
}

/// Writes a safetensors file in one format, rounding to nearest and saturating. The file appears
/// whole or not at all.
///
/// # Errors
/// [`Error::Io`]; [`Error::TensorFile`] for a format that safetensors does not name.
pub fn write_tensors<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
    format: Format,
    metadata: HashMap<String, String>,
) -> Result<()> {
    let damaged = |reason: String| Error::TensorFile { path: path.into(), reason };
    let dtype = STORED.iter().find(|(stored, _)| *stored == format).map(|(_, dtype)| *dtype);
    let dtype = dtype.ok_or_else(|| {
        damaged(format!("cannot store {format}; expected F32, F16, BF16, E4M3 or E5M2"))
    })?;
    let mut encoded = Vec::new();
    for (name, tensor) in tensors {
        let mut bytes = vec![0; tensor.values.len() * format.bytes()];
        let how = Conversion::SATURATE;
        encode_slice(format, how, Noise::default(), &tensor.values, &mut bytes)
            .map_err(|error| damaged(format!("`{name}`: {error}")))?;
        encoded.push((name, tensor.shape.clone(), bytes));
    }
    let views = encoded
        .iter()
        .map(|(name, shape, bytes)| {
            let view = TensorView::new(dtype, shape.clone(), bytes);
            Ok((*name, view.map_err(|error| damaged(format!("`{name}`: {error}")))?))
        })
        .collect::<Result<Vec<_>>>()?;
    let bytes = safetensors::serialize(views, Some(metadata))
        .map_err(|error| damaged(error.to_string()))?;
    write_whole(path, &bytes)
}

/// Writes a file beside its place and then moves it there.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let io = |source| Error::Io { action: "write", path: path.into(), source };
    let mut beside = path.as_os_str().to_owned();
    beside.push(".tmp");
    fs::write(&beside, bytes).map_err(io)?;
    fs::rename(&beside, path).map_err(io)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stored_format_reads_back() -> Result<()> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("model.safetensors");
        let tensor = Tensor { shape: vec![2, 3], values: vec![0.0, 1.0, -2.5, 0.3, 448.0, 7e4] };
        for (format, _) in STORED {
            write_tensors(&path, [("w", &tensor)], format, HashMap::new())?;
            let file = TensorFile::open(&path)?;
            assert_eq!(file.shapes()?["w"], [2, 3]);
            let found = file.read("w")?.values;
            let step = 2_f32.powi(-(format.mantissa_bits() as i32) - 1);
            for (found, value) in found.iter().zip(&tensor.values) {
                let nearest = value.min(format.max() as f32);
                assert!(
                    (found - nearest).abs() <= step * nearest.abs(),
                    "{format}: {found} {value}"
                );
            }
        }
        Ok(())
    }

    #[test]
    fn what_is_wrong_is_named() -> Result<()> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("model.safetensors");
        assert!(matches!(TensorFile::open(&path), Err(Error::Io { .. })));
        fs::write(&path, b"no tensors").expect("room");
        let message = TensorFile::open(&path).expect_err("no header").to_string();
        assert!(message.contains("model.safetensors"), "{message}");
        let tensor = Tensor { shape: vec![3], values: vec![1.0; 3] };
        write_tensors(&path, [("w", &tensor)], Format::F32, HashMap::new())?;
        let message = TensorFile::open(&path)?.read("v").expect_err("no such name").to_string();
        assert!(message.contains("`v`"), "{message}");
        let error = write_tensors(&path, [("w", &tensor)], Format::E2M1, HashMap::new());
        assert!(error.expect_err("no name for it").to_string().contains("E2M1"));
        let whole = fs::read(&path).expect("a file");
        fs::write(&path, &whole[..whole.len() - 1]).expect("room");
        assert!(TensorFile::open(&path).is_err(), "a byte is missing");
        Ok(())
    }
}
