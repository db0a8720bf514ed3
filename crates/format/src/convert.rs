//! From one format to another, rounding once.

use crate::{
    Conversion, Error, Format, Isa, Noise, bulk::check_length, decode_slice_on, encode_slice_on,
};

/// Converts little-endian codes of one format into those of another.
///
/// Every value of a [`Format`] is exact in f32, so going through f32 rounds once, as `how` says.
/// Element `i` takes the random bits that [`encode_slice`](crate::encode_slice) gives it.
///
/// # Errors
/// [`Error::Length`] if `src` is no whole number of codes or `dst` has not room for exactly as
/// many; [`Error::RandomBits`] as for `encode_slice`.
pub fn convert_slice(
    from: Format,
    to: Format,
    how: Conversion,
    noise: Noise,
    src: &[u8],
    dst: &mut [u8],
) -> Result<(), Error> {
    let count = src.len() / from.bytes();
    check_length("bytes of source codes", src.len(), count * from.bytes())?;
    check_length("bytes of codes", dst.len(), count * to.bytes())?;
    let isa = Isa::detect();
    let mut values = [0.0; 1024];
    let mut noise = noise;
    let sources = src.chunks(values.len() * from.bytes());
    let targets = dst.chunks_mut(values.len() * to.bytes());
    for (src, dst) in sources.zip(targets) {
        let values = &mut values[..src.len() / from.bytes()];
        decode_slice_on(isa, from, src, values)?;
        encode_slice_on(isa, to, how, noise, values, dst)?;
        noise.offset = noise.offset.wrapping_add(values.len() as u64);
    }
    Ok(())
}
