//! Block formats over whole tensors: lines along the last axis, tiles along the others.

use super::{
    Blocks, Packing,
    kernel::{self, GROUP, Lane, ScaleRule},
    pack,
};
use crate::{
    Conversion, Error, Isa, Noise, Rounding, bulk::plan::DecodePlan, bulk::plan::EncodePlan,
    decode_slice_on, encode_slice_on,
};

/// Longest block of the named formats.
const LONGEST: usize = 32;
const BUFFER: usize = GROUP * LONGEST;

impl Blocks {
    /// [`Blocks::encode`] with a given instruction set, for tests and benchmarks.
    ///
    /// # Errors
    /// As [`Blocks::encode`], and [`Error::Isa`].
    pub fn encode_on(
        &self,
        isa: Isa,
        how: Conversion,
        noise: Noise,
        src: &[f32],
        scales: &mut [u8],
        codes: &mut [u8],
    ) -> Result<(), Error> {
        isa.check()?;
        self.check(src.len(), scales.len(), codes.len())?;
        let rule = ScaleRule::new(self.format, self.tensor_scale)
            .ok_or(Error::Parameters { reason: "a scale format that is no 8-bit float" })?;
        let encoder = Encoder { blocks: self, isa, how, noise, rule };
        let block = self.format.block_len();
        let layout = self.layout;
        if self.is_packed() {
            codes.fill(0);
        }
        if layout.inner != 1 {
            return encoder.tiles(src, scales, codes);
        }
        // Lines of whole blocks are one long line.
        let line = if layout.len.is_multiple_of(block) { src.len() } else { layout.len };
        let blocks = line.div_ceil(block).max(1);
        for (number, scales) in scales.chunks_mut(blocks).enumerate() {
            let first = number * line;
            match block {
                16 => encoder.line::<16>(first, &src[first..first + line], scales, codes)?,
                _ => encoder.line::<32>(first, &src[first..first + line], scales, codes)?,
            }
        }
        Ok(())
    }

    /// [`Blocks::decode`] with a given instruction set, for tests and benchmarks.
    ///
    /// # Errors
    /// As [`Blocks::decode`], and [`Error::Isa`].
    pub fn decode_on(
        &self,
        isa: Isa,
        scales: &[u8],
        codes: &[u8],
        dst: &mut [f32],
    ) -> Result<(), Error> {
        isa.check()?;
        self.check(dst.len(), scales.len(), codes.len())?;
        let block = self.format.block_len();
        let layout = self.layout;
        if layout.inner != 1 {
            return self.decode_tiles(isa, scales, codes, dst);
        }
        let line = if layout.len.is_multiple_of(block) { dst.len() } else { layout.len };
        let blocks = line.div_ceil(block).max(1);
        for (number, scales) in scales.chunks(blocks).enumerate() {
            let first = number * line;
            match block {
                16 => {
                    self.decode_line::<16>(isa, first, scales, codes, &mut dst[first..][..line])?
                }
                _ => {
                    self.decode_line::<32>(isa, first, scales, codes, &mut dst[first..][..line])?
                }
            }
        }
        Ok(())
    }

    /// Whether codes lie closer than one a byte.
    fn is_packed(&self) -> bool {
        self.packing == Packing::Packed && self.format.element().bits() < 8
    }

    /// Whether elements `first .. first + count` fill whole bytes, or bytes that no other has.
    fn owns_bytes(&self, first: usize, count: usize) -> bool {
        let bits = self.format.element().bits() as usize;
        let end = first + count;
        (first * bits).is_multiple_of(8)
            && ((end * bits).is_multiple_of(8) || end == self.layout.count())
    }

    /// Writes unpacked codes of the elements from `first` on. Packed bits must be 0.
    fn store(&self, isa: Isa, first: usize, codes: &[u8], bytes: &mut [u8]) {
        let bits = self.format.element().bits();
        if !self.is_packed() {
            bytes[first..first + codes.len()].copy_from_slice(codes);
        } else if self.owns_bytes(first, codes.len()) {
            let start = first * bits as usize / 8;
            let end = ((first + codes.len()) * bits as usize).div_ceil(8);
            let bytes = &mut bytes[start..end];
            let done = if bits == 6 { pack::pack_six(isa, codes, bytes) } else { 0 };
            kernel::pack(isa, bits, &codes[done..], &mut bytes[done * bits as usize / 8..]);
        } else {
            for (index, code) in codes.iter().enumerate() {
                pack::put(bytes, bits, first + index, *code);
            }
        }
    }

    /// Reads the elements from `first` on into unpacked codes.
    fn load(&self, isa: Isa, first: usize, bytes: &[u8], codes: &mut [u8]) {
        let bits = self.format.element().bits();
        if !self.is_packed() {
            codes.copy_from_slice(&bytes[first..first + codes.len()]);
        } else if (first * bits as usize).is_multiple_of(8) {
            kernel::unpack(isa, bits, &bytes[first * bits as usize / 8..], codes);
        } else {
            for (index, code) in codes.iter_mut().enumerate() {
                *code = pack::get(bytes, bits, first + index);
            }
        }
    }

    fn decode_line<const N: usize>(
        &self,
        isa: Isa,
        first: usize,
        scales: &[u8],
        bytes: &[u8],
        dst: &mut [f32],
    ) -> Result<(), Error> {
        let mut codes = [0_u8; BUFFER];
        let mut factors = [0.0; GROUP];
        let step = GROUP * N;
        for (number, dst) in dst.chunks_mut(step).enumerate() {
            let scales = &scales[number * GROUP..][..dst.len().div_ceil(N)];
            self.factors(isa, scales, &mut factors[..scales.len()])?;
            let start = first + number * step;
            let packed = self.is_packed();
            if packed {
                self.load(isa, start, bytes, &mut codes[..dst.len()]);
            }
            let codes = if packed { &codes[..dst.len()] } else { &bytes[start..][..dst.len()] };
            let element = self.format.element();
            let Some(plan) = DecodePlan::new(element) else {
                decode_slice_on(isa, element, codes, dst)?;
                for (values, factor) in dst.chunks_mut(N).zip(&factors) {
                    values.iter_mut().for_each(|value| *value *= factor);
                }
                continue;
            };
            let (whole, rest) = dst.as_chunks_mut::<N>();
            let (whole_codes, rest_codes) = codes.as_chunks::<N>();
            kernel::decode_blocks(isa, &plan, &factors, whole_codes, whole);
            if !rest.is_empty() {
                let (mut padded_codes, mut padded) = ([[0; N]], [[0.0; N]]);
                padded_codes[0][..rest.len()].copy_from_slice(rest_codes);
                let factor = &factors[scales.len() - 1..];
                kernel::decode_blocks(isa, &plan, factor, &padded_codes, &mut padded);
                rest.copy_from_slice(&padded[0][..rest.len()]);
            }
        }
        Ok(())
    }

    fn decode_tiles(
        &self,
        isa: Isa,
        scales: &[u8],
        bytes: &[u8],
        dst: &mut [f32],
    ) -> Result<(), Error> {
        let mut codes = [0_u8; GROUP];
        let (mut values, mut factors) = ([0.0; GROUP], [0.0; GROUP]);
        self.for_each_tile(|tile| {
            let width = tile.width;
            self.factors(isa, &scales[tile.scale..][..width], &mut factors[..width])?;
            for row in 0..tile.rows {
                let start = tile.first + row * self.layout.inner;
                self.load(isa, start, bytes, &mut codes[..width]);
                let element = self.format.element();
                decode_slice_on(isa, element, &codes[..width], &mut values[..width])?;
                let dst = &mut dst[start..start + width];
                kernel::multiply(isa, &values[..width], &factors, dst);
            }
            Ok(())
        })
    }

    /// The factors of elements: scale times tensor scale.
    fn factors(&self, isa: Isa, scales: &[u8], factors: &mut [f32]) -> Result<(), Error> {
        if self.format.has_power_scale() {
            kernel::power_factors(isa, self.tensor_scale, scales, factors);
        } else {
            decode_slice_on(isa, self.format.scale(), scales, factors)?;
            factors.iter_mut().for_each(|factor| *factor *= self.tensor_scale);
        }
        Ok(())
    }

    /// Calls `work` for blocks along an axis that is not the last, [`GROUP`] columns at a time.
    fn for_each_tile(&self, mut work: impl FnMut(Tile) -> Result<(), Error>) -> Result<(), Error> {
        let (layout, block) = (self.layout, self.format.block_len());
        let blocks = layout.len.div_ceil(block);
        for outer in 0..layout.outer {
            for number in 0..blocks {
                for column in (0..layout.inner).step_by(GROUP) {
                    let row = outer * layout.len + number * block;
                    work(Tile {
                        first: row * layout.inner + column,
                        rows: block.min(layout.len - number * block),
                        width: GROUP.min(layout.inner - column),
                        scale: (outer * blocks + number) * layout.inner + column,
                    })?;
                }
            }
        }
        Ok(())
    }
}

/// Some neighbouring columns of one row of blocks.
struct Tile {
    /// Index of the first element.
    first: usize,
    rows: usize,
    width: usize,
    /// Index of the first scale.
    scale: usize,
}

struct Encoder<'a> {
    blocks: &'a Blocks,
    isa: Isa,
    how: Conversion,
    noise: Noise,
    rule: ScaleRule,
}

impl Encoder<'_> {
    /// One line whose blocks lie in memory without gaps.
    fn line<const N: usize>(
        &self,
        first: usize,
        src: &[f32],
        scales: &mut [u8],
        bytes: &mut [u8],
    ) -> Result<(), Error> {
        let mut codes = [0_u8; BUFFER];
        let packed = self.blocks.is_packed();
        for (number, src) in src.chunks(GROUP * N).enumerate() {
            let scales = &mut scales[number * GROUP..][..src.len().div_ceil(N)];
            let start = first + number * GROUP * N;
            if packed {
                let codes = &mut codes[..src.len()];
                self.group::<N>(start, src, scales, codes)?;
                self.blocks.store(self.isa, start, codes, bytes);
            } else {
                self.group::<N>(start, src, scales, &mut bytes[start..][..src.len()])?;
            }
        }
        Ok(())
    }

    /// At most [`GROUP`] blocks, the last of which may be short.
    fn group<const N: usize>(
        &self,
        start: usize,
        src: &[f32],
        scales: &mut [u8],
        codes: &mut [u8],
    ) -> Result<(), Error> {
        let (whole, rest) = src.as_chunks::<N>();
        let (whole_scales, rest_scales) = scales.split_at_mut(whole.len());
        let (whole_codes, rest_codes) = codes.split_at_mut(whole.len() * N);
        self.whole_blocks(start, whole, whole_scales, whole_codes)?;
        if !rest.is_empty() {
            let (mut padded, mut padded_codes) = ([[0.0; N]], [0; N]);
            padded[0][..rest.len()].copy_from_slice(rest);
            let start = start + whole.len() * N;
            self.whole_blocks(start, &padded, rest_scales, &mut padded_codes)?;
            rest_codes.copy_from_slice(&padded_codes[..rest.len()]);
        }
        let nan = self.blocks.format.scale().nan_code() as u8;
        for (scale, codes) in scales.iter().zip(codes.chunks_mut(N)) {
            if *scale == nan {
                codes.fill(0);
            }
        }
        Ok(())
    }

    fn whole_blocks<const N: usize>(
        &self,
        start: usize,
        src: &[[f32; N]],
        scales: &mut [u8],
        codes: &mut [u8],
    ) -> Result<(), Error> {
        let element = self.blocks.format.element();
        if self.how.rounding == Rounding::NearestEven
            && let Some(plan) = EncodePlan::new(element, self.how)
            && let Some(lane) = kernel::lane_for(element, &plan)
        {
            let codes = codes.as_chunks_mut().0;
            let encode = match lane {
                Lane::Plain => kernel::encode_nearest_even::<{ kernel::FAST }, N>,
                Lane::Other => kernel::encode_nearest_even::<{ kernel::OTHER }, N>,
            };
            encode(self.isa, &self.rule, &plan, src, scales, codes);
            return Ok(());
        }
        let mut scaled = [[0.0; N]; GROUP];
        let scaled = &mut scaled[..src.len()];
        kernel::scale_blocks(self.isa, &self.rule, src, scales, scaled);
        encode_slice_on(self.isa, element, self.how, self.at(start), scaled.as_flattened(), codes)
    }

    /// Blocks along an axis that is not the last.
    fn tiles(&self, src: &[f32], scales: &mut [u8], bytes: &mut [u8]) -> Result<(), Error> {
        let inner = self.blocks.layout.inner;
        let mut codes = [0_u8; GROUP];
        let (mut scaled, mut factors) = ([0.0; GROUP], [0.0; GROUP]);
        let nan = self.blocks.format.scale().nan_code() as u8;
        self.blocks.for_each_tile(|tile| {
            let width = tile.width;
            let mut largest = [0; GROUP];
            let rows = (0..tile.rows).map(|row| tile.first + row * inner);
            for start in rows.clone() {
                kernel::accumulate(self.isa, &src[start..start + width], &mut largest);
            }
            let scales = &mut scales[tile.scale..][..width];
            kernel::scales(self.isa, &self.rule, &largest[..width], scales, &mut factors);
            for start in rows {
                let (scaled, codes) = (&mut scaled[..width], &mut codes[..width]);
                kernel::multiply(self.isa, &src[start..start + width], &factors, scaled);
                let element = self.blocks.format.element();
                encode_slice_on(self.isa, element, self.how, self.at(start), scaled, codes)?;
                for (scale, code) in scales.iter().zip(&mut *codes) {
                    *code = if *scale == nan { 0 } else { *code };
                }
                self.blocks.store(self.isa, start, codes, bytes);
            }
            Ok(())
        })
    }

    fn at(&self, start: usize) -> Noise {
        Noise { offset: self.noise.offset.wrapping_add(start as u64), ..self.noise }
    }
}
