//! Slices of the storage types of other crates.

use crate::{Conversion, Error, Format, Isa, Noise, bulk::check_length};

/// A type of another crate that holds one code of a format.
///
/// Implemented for `half::{f16, bf16}` (feature `half`) and `float8::{F8E4M3, F8E5M2}` (feature
/// `float8`).
pub trait Storage: Copy {
    /// The format of the codes.
    const FORMAT: Format;
    /// The value with this code.
    fn from_code(code: u16) -> Self;
    /// The code of this value.
    fn to_code(self) -> u16;
}

macro_rules! storage {
    ($($feature:literal $type:ty, $format:ident, $bits:ty;)*) => {$(
        #[cfg(feature = $feature)]
        impl Storage for $type {
            const FORMAT: Format = Format::$format;
            #[inline]
            fn from_code(code: u16) -> Self {
                Self::from_bits(code as $bits)
            }
            #[inline]
            fn to_code(self) -> u16 {
                self.to_bits() as u16
            }
        }
    )*};
}

storage! {
    "half" half::f16, F16, u16;
    "half" half::bf16, BF16, u16;
    "float8" float8::F8E4M3, E4M3, u8;
    "float8" float8::F8E5M2, E5M2, u8;
}

const PART: usize = 1024;

/// [`encode_slice`](crate::encode_slice) into values of a storage type.
///
/// # Errors
/// [`Error::Length`] if the slices differ in length, [`Error::RandomBits`].
pub fn encode_storage<T: Storage>(
    how: Conversion,
    noise: Noise,
    src: &[f32],
    dst: &mut [T],
) -> Result<(), Error> {
    check_length("values of the storage type", dst.len(), src.len())?;
    let (isa, bytes) = (Isa::detect(), T::FORMAT.bytes());
    let mut codes = [0; 2 * PART];
    let mut noise = noise;
    for (src, dst) in src.chunks(PART).zip(dst.chunks_mut(PART)) {
        let codes = &mut codes[..src.len() * bytes];
        crate::encode_slice_on(isa, T::FORMAT, how, noise, src, codes)?;
        if bytes == 1 {
            for (code, value) in codes.iter().zip(dst) {
                *value = T::from_code(u16::from(*code));
            }
        } else {
            for (code, value) in codes.as_chunks().0.iter().zip(dst) {
                *value = T::from_code(u16::from_le_bytes(*code));
            }
        }
        noise.offset = noise.offset.wrapping_add(PART as u64);
    }
    Ok(())
}

/// [`decode_slice`](crate::decode_slice) from values of a storage type.
///
/// # Errors
/// [`Error::Length`] if the slices differ in length.
pub fn decode_storage<T: Storage>(src: &[T], dst: &mut [f32]) -> Result<(), Error> {
    check_length("values of the storage type", src.len(), dst.len())?;
    let (isa, bytes) = (Isa::detect(), T::FORMAT.bytes());
    let mut codes = [0; 2 * PART];
    for (src, dst) in src.chunks(PART).zip(dst.chunks_mut(PART)) {
        let codes = &mut codes[..src.len() * bytes];
        if bytes == 1 {
            for (code, value) in codes.iter_mut().zip(src) {
                *code = value.to_code() as u8;
            }
        } else {
            for (code, value) in codes.as_chunks_mut().0.iter_mut().zip(src) {
                *code = value.to_code().to_le_bytes();
            }
        }
        crate::decode_slice_on(isa, T::FORMAT, codes, dst)?;
    }
    Ok(())
}
