//! Block formats: small groups of elements that share a scale.

mod kernel;
mod pack;
mod tensor;

use core::{fmt, str::FromStr};

use crate::{Conversion, Error, Format, Isa, Noise, Specials, bulk::check_length};

/// An element format, a scale format and the number of elements that share one scale.
///
/// A value is `tensor_scale · scale · element`. For the MX formats (OCP Microscaling Formats 1.0,
/// §5 and §6.3) the scale is a power of two,
/// `2^(floor(log2(largest magnitude)) - exponent of the element format's largest value)`, held
/// within E8M0, and the tensor scale is 1. For NVFP4 it is `largest magnitude / 6 / tensor_scale`,
/// rounded to the nearest E4M3, with [`BlockFormat::tensor_scale`] making full use of E4M3.
///
/// A block that holds an infinity or NaN gets the NaN scale: all of it decodes to NaN.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockFormat {
    element: Format,
    scale: Format,
    block: usize,
}

/// MXINT8 elements: two's complement with six fraction bits.
const FRACTION: Format = match Format::new(0, 7, 6, Specials::Integer) {
    Ok(format) => format,
    Err(_) => Format::INT8,
};

impl BlockFormat {
    /// 32 E4M3 elements and an E8M0 scale.
    pub const MXFP8_E4M3: Self = Self::mx(Format::E4M3);
    /// 32 E5M2 elements and an E8M0 scale.
    pub const MXFP8_E5M2: Self = Self::mx(Format::E5M2);
    /// 32 E3M2 elements and an E8M0 scale.
    pub const MXFP6_E3M2: Self = Self::mx(Format::E3M2);
    /// 32 E2M3 elements and an E8M0 scale.
    pub const MXFP6_E2M3: Self = Self::mx(Format::E2M3);
    /// 32 E2M1 elements and an E8M0 scale.
    pub const MXFP4: Self = Self::mx(Format::E2M1);
    /// 32 eight-bit integers with six fraction bits and an E8M0 scale.
    pub const MXINT8: Self = Self::mx(FRACTION);
    /// 16 E2M1 elements and an E4M3 scale, under a scale for the whole tensor.
    pub const NVFP4: Self = Self { element: Format::E2M1, scale: Format::E4M3, block: 16 };

    /// Every named block format.
    pub const NAMED: &'static [(&'static str, Self)] = &[
        ("MXFP8_E4M3", Self::MXFP8_E4M3),
        ("MXFP8_E5M2", Self::MXFP8_E5M2),
        ("MXFP6_E3M2", Self::MXFP6_E3M2),
        ("MXFP6_E2M3", Self::MXFP6_E2M3),
        ("MXFP4", Self::MXFP4),
        ("MXINT8", Self::MXINT8),
        ("NVFP4", Self::NVFP4),
    ];

    const fn mx(element: Format) -> Self {
        Self { element, scale: Format::E8M0, block: 32 }
    }

    /// Format of the elements.
    pub const fn element(self) -> Format {
        self.element
    }

    /// Format of the scales, one byte each.
    pub const fn scale(self) -> Format {
        self.scale
    }

    /// Elements that share a scale.
    pub const fn block_len(self) -> usize {
        self.block
    }

    /// The name, as in `"MXFP4"`.
    pub fn name(self) -> &'static str {
        Self::NAMED.iter().find(|(_, format)| *format == self).map_or("", |(name, _)| name)
    }

    /// Storage of one element in bits, its share of the scale included.
    pub const fn bits_per_element(self) -> f64 {
        self.element.bits() as f64 + self.scale.bits() as f64 / self.block as f64
    }

    /// Bytes of the codes of `count` elements.
    pub const fn code_bytes(self, count: usize, packing: Packing) -> usize {
        match packing {
            Packing::Unpacked => count * self.element.bytes(),
            Packing::Packed => (count * self.element.bits() as usize).div_ceil(8),
        }
    }

    /// The tensor scale for a tensor with this largest magnitude: for NVFP4
    /// `magnitude / (6 · 448)`, which gives the largest block the scale 448; 1 for the MX formats,
    /// for a tensor of zeros and for one that is not finite.
    pub fn tensor_scale(self, magnitude: f32) -> f32 {
        let scale = magnitude / (self.element.max() * self.scale.max()) as f32;
        let usable = scale.is_finite() && scale >= f32::MIN_POSITIVE;
        if self.has_power_scale() || !usable { 1.0 } else { scale }
    }

    pub(crate) const fn has_power_scale(self) -> bool {
        matches!(self.scale.specials(), Specials::Scale)
    }

    /// Exponent of the largest element value.
    pub(crate) const fn element_exponent(self) -> i32 {
        let code = self.element.max_code();
        match self.element.specials() {
            Specials::Integer => self.element.mantissa_bits() as i32 - 1 - self.element.bias(),
            _ => (code >> self.element.mantissa_bits()) as i32 - self.element.bias(),
        }
    }
}

impl fmt::Display for BlockFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Debug for BlockFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for BlockFormat {
    type Err = Error;

    /// Parses a name without regard to case; `-` counts as `_`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let same = |name: &str| {
            let plain = text.bytes().map(|byte| if byte == b'-' { b'_' } else { byte });
            name.len() == text.len()
                && name.bytes().zip(plain).all(|(a, b)| a.eq_ignore_ascii_case(&b))
        };
        let found = Self::NAMED.iter().find(|(name, _)| same(name));
        found.map(|(_, format)| *format).ok_or(Error::UnknownBlockFormat)
    }
}

/// How element codes lie in memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Packing {
    /// One code a byte, in its low bits.
    Unpacked,
    /// Without gaps: element `i` in row-major order has the bits from `i · bits` on, counted from
    /// the lowest bit of the first byte. The bits behind the last element are 0.
    Packed,
}

/// A row-major tensor seen from the axis along which blocks run: `[outer, len, inner]`.
///
/// Scales form the row-major tensor `[outer, ceil(len / block), inner]`. The last block of a line
/// may be short.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Layout {
    /// Product of the dimensions before the axis.
    pub outer: usize,
    /// Length of the axis.
    pub len: usize,
    /// Product of the dimensions after the axis.
    pub inner: usize,
}

impl Layout {
    /// Blocks along dimension `axis` of `shape`.
    ///
    /// # Errors
    /// [`Error::Axis`] if there is no such dimension, [`Error::TooLarge`] if the number of elements
    /// does not fit `usize`.
    pub fn new(shape: &[usize], axis: usize) -> Result<Self, Error> {
        let Some(&len) = shape.get(axis) else {
            return Err(Error::Axis { axis, dimensions: shape.len() });
        };
        let product =
            |part: &[usize]| part.iter().try_fold(1_usize, |product, &n| product.checked_mul(n));
        let whole = product(shape).zip(product(&shape[..axis])).zip(product(&shape[axis + 1..]));
        let ((_, outer), inner) = whole.ok_or(Error::TooLarge)?;
        Ok(Self { outer, len, inner })
    }

    /// Blocks along the only axis of `len` elements.
    pub const fn line(len: usize) -> Self {
        Self { outer: 1, len, inner: 1 }
    }

    /// Number of elements.
    pub const fn count(self) -> usize {
        self.outer * self.len * self.inner
    }

    /// Number of scales.
    pub const fn scales(self, format: BlockFormat) -> usize {
        self.outer * self.len.div_ceil(format.block) * self.inner
    }
}

/// A tensor in a block format: what its scales and codes mean, without the data.
///
/// ```
/// use onesigma_format::{BlockFormat, Blocks, Conversion, Layout, Noise, Packing};
///
/// let blocks = Blocks::new(BlockFormat::MXFP4, Layout::line(40), Packing::Packed);
/// let source: Vec<f32> = (0..40).map(|i| i as f32 * 0.1).collect();
/// let mut scales = vec![0; blocks.scale_bytes()]; // 2: one full block and one of 8
/// let mut codes = vec![0; blocks.code_bytes()]; // 20
/// blocks.encode(Conversion::SATURATE, Noise::default(), &source, &mut scales, &mut codes)?;
/// let mut back = vec![0.0; 40];
/// blocks.decode(&scales, &codes, &mut back)?;
/// assert_eq!(back[20], 2.0);
/// # Ok::<(), onesigma_format::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Blocks {
    /// Element, scale and block length.
    pub format: BlockFormat,
    /// Shape, and the axis along which blocks run.
    pub layout: Layout,
    /// How codes lie in memory.
    pub packing: Packing,
    /// Factor of every value; 1 unless set (see [`BlockFormat::tensor_scale`]).
    pub tensor_scale: f32,
}

impl Blocks {
    /// With tensor scale 1.
    pub const fn new(format: BlockFormat, layout: Layout, packing: Packing) -> Self {
        Self { format, layout, packing, tensor_scale: 1.0 }
    }

    /// Bytes of all scales.
    pub const fn scale_bytes(&self) -> usize {
        self.layout.scales(self.format)
    }

    /// Bytes of all codes.
    pub const fn code_bytes(&self) -> usize {
        self.format.code_bytes(self.layout.count(), self.packing)
    }

    /// Chooses the scales from the data and encodes.
    ///
    /// Elements are `value · (1 / (scale · tensor_scale))` in f32, then rounded and cut as `how`
    /// says; element `i` in row-major order takes the random bits `philox::draw(noise, i, bits)`.
    ///
    /// # Errors
    /// [`Error::Length`] if a slice has not the length that the layout asks for,
    /// [`Error::TensorScale`], [`Error::RandomBits`].
    pub fn encode(
        &self,
        how: Conversion,
        noise: Noise,
        src: &[f32],
        scales: &mut [u8],
        codes: &mut [u8],
    ) -> Result<(), Error> {
        self.encode_on(Isa::detect(), how, noise, src, scales, codes)
    }

    /// Decodes: `element · (scale · tensor_scale)` in f32.
    ///
    /// # Errors
    /// As [`Blocks::encode`].
    pub fn decode(&self, scales: &[u8], codes: &[u8], dst: &mut [f32]) -> Result<(), Error> {
        self.decode_on(Isa::detect(), scales, codes, dst)
    }

    fn check(&self, values: usize, scales: usize, codes: usize) -> Result<(), Error> {
        if !(self.tensor_scale.is_normal() && self.tensor_scale > 0.0) {
            return Err(Error::TensorScale { scale: self.tensor_scale });
        }
        check_length("values", values, self.layout.count())?;
        check_length("bytes of scales", scales, self.scale_bytes())?;
        check_length("bytes of block codes", codes, self.code_bytes())
    }
}
