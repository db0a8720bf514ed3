//! Between the codes of a format, as they lie on the device, and f32.

use crate::failed;
use candle_core::{DType as Stored, Device, Tensor};
use onesigma_backend::{Call, Error, Result};
use onesigma_format::{Format, decode_slice, encode_slice};
use onesigma_graph::{DType, Shape};
use std::cell::RefCell;
use std::collections::HashMap;

/// The tables of the formats of at most 8 bits, on one device.
pub(crate) struct Codec {
    device: Device,
    tables: RefCell<HashMap<Format, Tensor>>,
}

fn refused(error: onesigma_format::Error) -> Error {
    Error::Device { backend: crate::NAME.to_owned(), reason: error.to_string() }
}

/// Candle's type for codes, if it has one; else they are bytes.
fn stored(dtype: DType) -> Stored {
    match dtype {
        DType::U32 => Stored::U32,
        DType::F32 => Stored::F32,
        DType::Float(Format::F16) => Stored::F16,
        DType::Float(Format::BF16) => Stored::BF16,
        DType::Float(_) => Stored::U8,
    }
}

/// Whether a code takes two elements of the candle tensor.
pub(crate) fn is_split(dtype: DType) -> bool {
    stored(dtype) == Stored::U8 && dtype.bytes() == 2
}

impl Codec {
    pub fn new(device: Device) -> Self {
        Self { device, tables: RefCell::default() }
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// A tensor on the device from little-endian codes.
    pub fn upload(&self, shape: &Shape, dtype: DType, bytes: &[u8]) -> Result<Tensor> {
        let mut dims = shape.dims().to_vec();
        if is_split(dtype) {
            dims.push(2);
        }
        if bytes.is_empty() {
            return Tensor::zeros(dims, stored(dtype), &self.device).map_err(failed);
        }
        Tensor::from_raw_buffer(bytes, stored(dtype), &dims, &self.device).map_err(failed)
    }

    /// The little-endian codes of a tensor.
    pub fn download(&self, tensor: &Tensor, bytes: &mut [u8]) -> Result<()> {
        let flat = tensor.flatten_all().map_err(failed)?;
        fn put<T: candle_core::WithDType, const N: usize>(
            flat: &Tensor,
            bytes: &mut [u8],
            code: impl Fn(T) -> [u8; N],
        ) -> candle_core::Result<()> {
            for (to, value) in bytes.as_chunks_mut::<N>().0.iter_mut().zip(flat.to_vec1::<T>()?) {
                *to = code(value);
            }
            Ok(())
        }
        match tensor.dtype() {
            Stored::U8 => put(&flat, bytes, |code: u8| [code]),
            Stored::U32 => put(&flat, bytes, u32::to_le_bytes),
            Stored::F16 => put(&flat, bytes, |value: half::f16| value.to_le_bytes()),
            Stored::BF16 => put(&flat, bytes, |value: half::bf16| value.to_le_bytes()),
            _ => put(&flat, bytes, f32::to_le_bytes),
        }
        .map_err(failed)
    }

    /// The values of operand `n` of a call, in f32 on the device; U32 is converted.
    pub fn decode(&self, call: &Call<'_>, n: usize, tensor: &Tensor) -> Result<Tensor> {
        let value = call.inputs[n];
        let DType::Float(format) = value.dtype else {
            return tensor.to_dtype(Stored::F32).map_err(failed);
        };
        if tensor.dtype() != Stored::U8 {
            return tensor.to_dtype(Stored::F32).map_err(failed);
        }
        if is_split(value.dtype) {
            let (mut bytes, mut values) = (vec![0; value.bytes()], vec![0.0; value.shape.numel()]);
            self.download(tensor, &mut bytes)?;
            decode_slice(format, &bytes, &mut values).map_err(refused)?;
            return Tensor::from_vec(values, value.shape.dims(), &self.device).map_err(failed);
        }
        let table = self.table(format)?;
        let look_up = || {
            let codes = tensor.to_dtype(Stored::U32)?.flatten_all()?;
            table.index_select(&codes, 0)?.reshape(value.shape.dims())
        };
        look_up().map_err(failed)
    }

    /// The value of each code of a format of at most 8 bits.
    fn table(&self, format: Format) -> Result<Tensor> {
        if let Some(table) = self.tables.borrow().get(&format) {
            return Ok(table.clone());
        }
        let codes: Vec<u8> = (0..=255).collect();
        let mut values = vec![0.0; 256];
        decode_slice(format, &codes, &mut values).map_err(refused)?;
        let table = Tensor::from_vec(values, 256, &self.device).map_err(failed)?;
        self.tables.borrow_mut().insert(format, table.clone());
        Ok(table)
    }

    /// The result of a call from its value before the scale: times `alpha`, rounded once.
    pub fn encode(&self, call: &Call<'_>, value: &Tensor) -> Result<Tensor> {
        let to = call.output();
        let scale = || -> candle_core::Result<Tensor> {
            let shaped = value.broadcast_as(to.shape.dims())?.contiguous()?;
            if call.alpha() == 1.0 { Ok(shaped) } else { shaped.affine(call.alpha(), 0.0) }
        };
        let scaled = scale().map_err(failed)?;
        let format = match to.dtype {
            DType::F32 => return Ok(scaled),
            DType::Float(format) => format,
            DType::U32 => return scaled.to_dtype(Stored::U32).map_err(failed),
        };
        let values = scaled.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).map_err(failed)?;
        let mut bytes = vec![0; to.bytes()];
        encode_slice(format, to.conversion, call.noise(0), &values, &mut bytes).map_err(refused)?;
        self.upload(&to.shape, to.dtype, &bytes)
    }
}
