//! The bulk codecs: lengths checked, instruction set chosen, elements converted in loops that
//! compile to vector code.

mod dispatch;
pub(crate) mod lane;
pub(crate) mod plan;
mod stream;

use crate::{Conversion, Error, Format, Isa, Noise, Rounding, Specials, decode, encode, philox};
use plan::{DecodePlan, EncodePlan};

/// Encodes `src` into little-endian codes of [`Format::bytes`] bytes each.
///
/// Bit for bit what [`encode`] gives; with [`Rounding::Stochastic`], element `i` takes the bits
/// [`philox::draw`]`(noise, i, bits)`.
///
/// # Errors
/// [`Error::Length`] unless `dst` has `src.len() * format.bytes()` bytes, [`Error::RandomBits`]
/// for stochastic rounding with other than 8, 16 or 32 bits.
pub fn encode_slice(
    format: Format,
    how: Conversion,
    noise: Noise,
    src: &[f32],
    dst: &mut [u8],
) -> Result<(), Error> {
    encode_slice_on(Isa::detect(), format, how, noise, src, dst)
}

/// Decodes little-endian codes of [`Format::bytes`] bytes each; bit for bit what [`decode`] gives.
///
/// # Errors
/// [`Error::Length`] unless `src` has `dst.len() * format.bytes()` bytes.
pub fn decode_slice(format: Format, src: &[u8], dst: &mut [f32]) -> Result<(), Error> {
    decode_slice_on(Isa::detect(), format, src, dst)
}

/// [`encode_slice`] with a given instruction set, for tests and benchmarks.
///
/// # Errors
/// As [`encode_slice`], and [`Error::Isa`] if this machine has not the instruction set.
pub fn encode_slice_on(
    isa: Isa,
    format: Format,
    how: Conversion,
    noise: Noise,
    src: &[f32],
    dst: &mut [u8],
) -> Result<(), Error> {
    isa.check()?;
    check_length("bytes of codes", dst.len(), src.len() * format.bytes())?;
    if let Rounding::Stochastic { bits } = how.rounding
        && !matches!(bits, 8 | 16 | 32)
    {
        return Err(Error::RandomBits { bits });
    }
    let plan = EncodePlan::new(format, how);
    let mut done = 0;
    stream::write_in_parts(dst, format.bytes(), |part| {
        let count = part.len() / format.bytes();
        let noise = Noise { offset: noise.offset.wrapping_add(done as u64), ..noise };
        encode_part(isa, format, how, noise, plan.as_ref(), &src[done..done + count], part);
        done += count;
    });
    Ok(())
}

fn encode_part(
    isa: Isa,
    format: Format,
    how: Conversion,
    noise: Noise,
    plan: Option<&EncodePlan>,
    src: &[f32],
    dst: &mut [u8],
) {
    if format.is_f32() {
        for (value, code) in src.iter().zip(dst.as_chunks_mut().0) {
            *code = value.to_bits().to_le_bytes();
        }
    } else if let Some(plan) = plan {
        if format.bytes() == 1 {
            dispatch::encode::<1>(isa, how.rounding, noise, plan, src, dst.as_chunks_mut().0);
        } else {
            dispatch::encode::<2>(isa, how.rounding, noise, plan, src, dst.as_chunks_mut().0);
        }
    } else {
        encode_each(format, how, noise, src, dst);
    }
}

/// [`decode_slice`] with a given instruction set, for tests and benchmarks.
///
/// # Errors
/// As [`decode_slice`], and [`Error::Isa`] if this machine has not the instruction set.
pub fn decode_slice_on(isa: Isa, format: Format, src: &[u8], dst: &mut [f32]) -> Result<(), Error> {
    isa.check()?;
    check_length("bytes of codes", src.len(), dst.len() * format.bytes())?;
    if format.is_f32() {
        for (code, value) in src.as_chunks().0.iter().zip(dst) {
            *value = f32::from_bits(u32::from_le_bytes(*code));
        }
    } else if let Some(plan) = DecodePlan::new(format) {
        if format.bytes() == 1 {
            dispatch::decode_floats::<1>(isa, &plan, src.as_chunks().0, dst);
        } else {
            dispatch::decode_floats::<2>(isa, &plan, src.as_chunks().0, dst);
        }
    } else if matches!(format.specials(), Specials::Integer) {
        let (unused, quantum) = (32 - format.bits(), format.min_subnormal() as f32);
        if format.bytes() == 1 {
            dispatch::decode_integers::<1>(isa, unused, quantum, src.as_chunks().0, dst);
        } else {
            dispatch::decode_integers::<2>(isa, unused, quantum, src.as_chunks().0, dst);
        }
    } else {
        for (code, value) in src.chunks_exact(format.bytes()).zip(dst) {
            *value = decode(code.iter().rev().fold(0, |all, &byte| all << 8 | byte as u32), format);
        }
    }
    Ok(())
}

pub(crate) fn check_length(what: &'static str, found: usize, expected: usize) -> Result<(), Error> {
    if found == expected { Ok(()) } else { Err(Error::Length { what, found, expected }) }
}

/// The scalar codec in a loop, for the formats that the lanes do not reach.
fn encode_each(format: Format, how: Conversion, noise: Noise, src: &[f32], dst: &mut [u8]) {
    for (index, (value, code)) in src.iter().zip(dst.chunks_exact_mut(format.bytes())).enumerate() {
        let random = match how.rounding {
            Rounding::Stochastic { bits } => philox::draw(noise, index as u64, bits),
            _ => 0,
        };
        let bytes = encode(*value, format, how, random).to_le_bytes();
        code.copy_from_slice(&bytes[..code.len()]);
    }
}
