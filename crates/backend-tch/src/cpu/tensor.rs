//! Codes as tensors of libtorch, and back.

use onesigma_backend::{Error, Result};
use onesigma_format::{Format, decode_slice, encode_slice};
use onesigma_graph::{DType, Shape, Value};
use tch::{Device, Kind, Tensor};

use super::NAME;

/// Any error of libtorch or of a codec, with its first line: the rest is a C++ stack trace.
pub(crate) fn failed(error: impl std::fmt::Display) -> Error {
    let text = error.to_string();
    let reason = text.lines().next().unwrap_or_default().to_owned();
    Error::Device { backend: NAME.to_owned(), reason }
}

/// Extents as libtorch wants them.
pub(crate) fn sizes(shape: &Shape) -> Vec<i64> {
    shape.dims().iter().map(|&dim| dim as i64).collect()
}

/// The kind that holds the codes of a type. libtorch has kinds of its own for the formats that
/// it knows; other codes are bytes or 16-bit words.
pub(crate) fn kind(dtype: DType) -> Kind {
    match dtype {
        DType::U32 => Kind::Int,
        DType::Float(Format::F32) => Kind::Float,
        DType::Float(Format::F16) => Kind::Half,
        DType::Float(Format::BF16) => Kind::BFloat16,
        DType::Float(Format::E4M3) => Kind::Float8e4m3fn,
        DType::Float(Format::E5M2) => Kind::Float8e5m2,
        DType::Float(format) if format.bytes() == 1 => Kind::Uint8,
        DType::Float(_) => Kind::Int16,
    }
}

/// A tensor from little-endian codes.
pub(crate) fn from_codes(codes: &[u8], shape: &Shape, dtype: DType) -> Result<Tensor> {
    Tensor::f_from_data_size(codes, &sizes(shape), kind(dtype)).map_err(failed)
}

/// The little-endian codes of a tensor.
pub(crate) fn codes(tensor: &Tensor) -> Result<Vec<u8>> {
    let tensor = tensor.f_contiguous().map_err(failed)?;
    let numel = tensor.numel();
    let mut bytes = vec![0; numel * tensor.kind().elt_size_in_bytes()];
    tensor.f_copy_data_u8(&mut bytes, numel).map_err(failed)?;
    Ok(bytes)
}

/// The values of a tensor in f32.
pub(crate) fn decoded(tensor: &Tensor, value: &Value) -> Result<Tensor> {
    let to = |kind| tensor.f_to_kind(kind).map_err(failed);
    match value.dtype {
        DType::U32 => {
            // libtorch's 32-bit integers are signed.
            let word = to(Kind::Int64)?.f_bitwise_and(0xffff_ffff_i64).map_err(failed)?;
            word.f_to_kind(Kind::Float).map_err(failed)
        }
        DType::Float(Format::F32 | Format::F16 | Format::BF16 | Format::E4M3 | Format::E5M2) => {
            to(Kind::Float)
        }
        DType::Float(format) => {
            let mut values = vec![0.0_f32; tensor.numel()];
            decode_slice(format, &codes(tensor)?, &mut values).map_err(failed)?;
            Tensor::from_slice(&values).f_view(&sizes(&value.shape)[..]).map_err(failed)
        }
    }
}

/// f32 values rounded into the format of `value`.
pub(crate) fn encoded(
    values: &Tensor,
    value: &Value,
    noise: onesigma_format::Noise,
) -> Result<Tensor> {
    let DType::Float(format) = value.dtype else {
        return Err(failed(format!("{} is no float format", value.dtype)));
    };
    let values = values.f_contiguous().map_err(failed)?;
    if format.is_f32() {
        return values.f_view(&sizes(&value.shape)[..]).map_err(failed);
    }
    let mut plain = vec![0.0_f32; values.numel()];
    let numel = plain.len();
    values.f_copy_data(&mut plain, numel).map_err(failed)?;
    let mut bytes = vec![0; value.bytes()];
    encode_slice(format, value.conversion, noise, &plain, &mut bytes).map_err(failed)?;
    from_codes(&bytes, &value.shape, value.dtype)
}

/// The device of this module.
pub(crate) const DEVICE: Device = Device::Cpu;
