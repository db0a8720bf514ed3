//! What an encoding lost, counted in the same pass over memory.
#![allow(unsafe_code)] // calls of functions whose instruction set was detected

use crate::{
    Conversion, Error, Format, Isa, Noise, Specials, bulk::check_length, encode_slice_on,
    isa::per_isa,
};

/// What an encoding met and lost.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Statistics {
    /// Values seen.
    pub count: u64,
    /// Largest magnitude, NaN left out; infinite if there was an infinity.
    pub max_abs: f32,
    /// Values other than zero whose code is zero.
    pub underflow: u64,
    /// Values larger in magnitude than the format's largest, infinities included.
    pub overflow: u64,
    /// NaNs.
    pub nan: u64,
}

impl Statistics {
    /// The statistics of both parts together.
    pub fn merge(self, other: Self) -> Self {
        Self {
            count: self.count + other.count,
            max_abs: self.max_abs.max(other.max_abs),
            underflow: self.underflow + other.underflow,
            overflow: self.overflow + other.overflow,
            nan: self.nan + other.nan,
        }
    }
}

/// Values whose codes are still in the cache when they are counted.
const PART: usize = 4096;

/// [`encode_slice`](crate::encode_slice), with statistics.
///
/// # Errors
/// As `encode_slice`.
pub fn encode_slice_with_statistics(
    format: Format,
    how: Conversion,
    noise: Noise,
    src: &[f32],
    dst: &mut [u8],
) -> Result<Statistics, Error> {
    check_length("bytes of codes", dst.len(), src.len() * format.bytes())?;
    let isa = Isa::detect();
    let limits = Limits {
        max: if format.is_f32() { f32::MAX } else { format.max() as f32 }.to_bits(),
        // Codes of formats without a zero never count as one.
        magnitude: match format.specials() {
            Specials::Scale => 0,
            Specials::Integer => u32::MAX,
            _ => format.sign_bit() - 1,
        },
        zero: if matches!(format.specials(), Specials::Scale) { 1 } else { 0 },
    };
    let mut total = Statistics::default();
    let mut noise = noise;
    for (src, dst) in src.chunks(PART).zip(dst.chunks_mut(PART * format.bytes())) {
        encode_slice_on(isa, format, how, noise, src, dst)?;
        let mut counts = Counts::default();
        match format.bytes() {
            1 => count::<1>(isa, &limits, src, dst.as_chunks().0, &mut counts),
            2 => count::<2>(isa, &limits, src, dst.as_chunks().0, &mut counts),
            _ => count::<4>(isa, &limits, src, dst.as_chunks().0, &mut counts),
        }
        total = total.merge(Statistics {
            count: src.len() as u64,
            max_abs: f32::from_bits(counts.largest),
            underflow: counts.underflow.into(),
            overflow: counts.overflow.into(),
            nan: counts.nan.into(),
        });
        noise.offset = noise.offset.wrapping_add(PART as u64);
    }
    Ok(total)
}

struct Limits {
    /// f32 bits of the largest value.
    max: u32,
    /// The bits of a code that are not its sign.
    magnitude: u32,
    /// What they are in the code of zero.
    zero: u32,
}

#[derive(Default)]
struct Counts {
    largest: u32,
    underflow: u32,
    overflow: u32,
    nan: u32,
}

#[inline(always)]
fn count_body<const BYTES: usize>(
    limits: &Limits,
    src: &[f32],
    codes: &[[u8; BYTES]],
    counts: &mut Counts,
) {
    const INFINITY: u32 = 0x7f80_0000;
    let (mut largest, mut underflow, mut overflow, mut nan) = (0_u32, 0_u32, 0_u32, 0_u32);
    for (value, code) in src.iter().zip(codes) {
        let absolute = value.to_bits() & 0x7fff_ffff;
        let mut bytes = [0; 4];
        bytes[..BYTES].copy_from_slice(code);
        let zero = u32::from_le_bytes(bytes) & limits.magnitude == limits.zero;
        let number = absolute <= INFINITY;
        largest = largest.max(if number { absolute } else { 0 });
        underflow += u32::from(zero & (absolute != 0) & (absolute <= limits.max));
        overflow += u32::from(number & (absolute > limits.max));
        nan += u32::from(!number);
    }
    *counts = Counts { largest, underflow, overflow, nan };
}

per_isa! {
    fn count<const BYTES: usize>(
        limits: &Limits, src: &[f32], codes: &[[u8; BYTES]], counts: &mut Counts,
    ) = count_body;
}
