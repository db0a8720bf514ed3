//! Operands: bytes with a format.

use onesigma_format::{Conversion, Format, Noise, Rounding};

use crate::Error;
use crate::codec;
use crate::parallel::Shared;

/// A tensor to read: little-endian codes, contiguous unless a kernel says otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The codes, [`Format::bytes`] each.
    pub bytes: &'a [u8],
    /// What they mean.
    pub format: Format,
}

/// A tensor to write: results are rounded once, from f32.
#[derive(Debug)]
pub struct Output<'a> {
    /// Room for the codes, [`Format::bytes`] each.
    pub bytes: &'a mut [u8],
    /// What they mean.
    pub format: Format,
    /// How results are rounded and what happens on overflow.
    pub how: Conversion,
    /// Random bits of stochastic rounding; `offset` belongs to the tensor's first element.
    pub noise: Noise,
}

impl<'a> Input<'a> {
    /// A tensor in `format`.
    pub fn new(bytes: &'a [u8], format: Format) -> Self {
        Self { bytes, format }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.format.bytes()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Decodes the elements from `start` on into `out`.
    #[inline]
    pub(crate) fn decode(&self, start: usize, out: &mut [f32]) {
        let width = self.format.bytes();
        let codes = &self.bytes[start * width..(start + out.len()) * width];
        codec::decode(self.format, codes, out);
    }

    pub(crate) fn expect(
        &self,
        kernel: &'static str,
        operand: &'static str,
        expected: usize,
    ) -> Result<(), Error> {
        expect_len(kernel, operand, self.bytes.len(), self.format, expected)
    }
}

impl<'a> Output<'a> {
    /// A tensor in `format`, rounded to nearest-even, saturating.
    pub fn new(bytes: &'a mut [u8], format: Format) -> Self {
        Self { bytes, format, how: Conversion::SATURATE, noise: Noise::default() }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.format.bytes()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn expect(
        &self,
        kernel: &'static str,
        operand: &'static str,
        expected: usize,
    ) -> Result<(), Error> {
        self.expect_rule()?;
        expect_len(kernel, operand, self.bytes.len(), self.format, expected)
    }

    pub(crate) fn expect_rule(&self) -> Result<(), Error> {
        expect_rule(self.how)
    }

    /// A form that tasks can write at the same time.
    pub(crate) fn share(&mut self) -> SharedOutput<'_> {
        SharedOutput {
            format: self.format,
            how: self.how,
            noise: self.noise,
            bytes: Shared::new(self.bytes),
        }
    }
}

/// Refuses a stochastic rounding with a number of bits that there is not.
pub(crate) fn expect_rule(how: Conversion) -> Result<(), Error> {
    match how.rounding {
        Rounding::Stochastic { bits } if !matches!(bits, 8 | 16 | 32) => {
            Err(onesigma_format::Error::RandomBits { bits }.into())
        }
        _ => Ok(()),
    }
}

pub(crate) fn expect_len(
    kernel: &'static str,
    operand: &'static str,
    bytes: usize,
    format: Format,
    expected: usize,
) -> Result<(), Error> {
    if bytes == expected * format.bytes() {
        Ok(())
    } else {
        Err(Error::Length { kernel, operand, found: bytes / format.bytes(), expected })
    }
}

/// An [`Output`] that tasks write at the same time, each its own elements.
#[derive(Clone, Copy)]
pub(crate) struct SharedOutput<'a> {
    bytes: Shared<'a, u8>,
    pub(crate) format: Format,
    how: Conversion,
    noise: Noise,
}

impl<'a> SharedOutput<'a> {
    /// Rounds `values` into the elements from `start` on.
    ///
    /// # Safety
    /// No two calls that run at the same time may write the same element.
    #[inline]
    pub(crate) unsafe fn encode(&self, start: usize, values: &[f32]) {
        let width = self.format.bytes();
        // SAFETY: disjoint by the caller's promise.
        let codes = unsafe { self.bytes.slice(start * width, values.len() * width) };
        let noise = Noise { offset: self.noise.offset + start as u64, ..self.noise };
        codec::encode(self.format, self.how, noise, values, codes);
    }

    /// The elements from `start` on, to read back.
    ///
    /// # Safety
    /// While the view is in use nothing may write these elements.
    pub(crate) unsafe fn view(&self, start: usize, len: usize) -> Input<'a> {
        let width = self.format.bytes();
        // SAFETY: not written meanwhile, by the caller's promise.
        let bytes = unsafe { self.bytes.slice(start * width, len * width) };
        Input::new(bytes, self.format)
    }

    /// The elements from `start` on as f32, if that is what they are and memory is aligned.
    ///
    /// # Safety
    /// As [`SharedOutput::encode`].
    pub(crate) unsafe fn as_f32(&self, start: usize, len: usize) -> Option<&'a mut [f32]> {
        if !self.format.is_f32() {
            return None;
        }
        // SAFETY: disjoint by the caller's promise; every bit pattern is a valid f32.
        let (before, floats, _) =
            unsafe { self.bytes.slice(start * 4, len * 4).align_to_mut::<f32>() };
        (before.is_empty() && floats.len() == len).then_some(floats)
    }
}
