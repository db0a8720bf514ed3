//! Any bytes as a format, a rule, a layout and data: nothing panics, every instruction set gives
//! what the scalar reference gives, and blocks decode what they encoded on every one alike.
#![no_main]

use libfuzzer_sys::fuzz_target;
use onesigma_format::{
    BlockFormat, Blocks, Conversion, Format, Isa, Layout, Noise, Overflow, Packing, Rounding,
    Specials, decode, decode_slice_on, encode, encode_slice_on, philox,
};

const SPECIALS: [Specials; 6] = [
    Specials::Ieee,
    Specials::FiniteNan,
    Specials::Fnuz,
    Specials::Finite,
    Specials::Scale,
    Specials::Integer,
];

fuzz_target!(|data: &[u8]| {
    let Some((head, data)) = data.split_first_chunk::<10>() else { return };
    let bias = i16::from_le_bytes([head[2], head[3]]);
    let specials = SPECIALS[usize::from(head[4]) % SPECIALS.len()];
    let format = Format::new(head[0], head[1], bias, specials)
        .unwrap_or(Format::NAMED[usize::from(head[0]) % Format::NAMED.len()]);
    let how = Conversion {
        rounding: Rounding::ALL[usize::from(head[5]) % Rounding::ALL.len()],
        overflow: [Overflow::Saturate, Overflow::Special][usize::from(head[5] >> 7)],
    };
    let noise = Noise { seed: 7, tensor: 1, step: 2, offset: head[6].into() };
    let values: Vec<f32> =
        data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    codec(format, how, noise, &values);
    let block = BlockFormat::NAMED[usize::from(head[7]) % BlockFormat::NAMED.len()].1;
    blocks(block, head[8], head[9], how, noise, &values, data);
});

fn codec(format: Format, how: Conversion, noise: Noise, values: &[f32]) {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        let mut bytes = vec![0; values.len() * format.bytes()];
        encode_slice_on(isa, format, how, noise, values, &mut bytes).expect("lengths fit");
        let mut back = vec![0.0; values.len()];
        decode_slice_on(isa, format, &bytes, &mut back).expect("lengths fit");
        for (index, code) in bytes.chunks_exact(format.bytes()).enumerate() {
            let code = code.iter().rev().fold(0, |all, &byte| all << 8 | u32::from(byte));
            let random = match how.rounding {
                Rounding::Stochastic { bits } => philox::draw(noise, index as u64, bits),
                _ => 0,
            };
            assert_eq!(code, encode(values[index], format, how, random), "{format} {how:?}");
            assert_eq!(back[index].to_bits(), decode(code, format).to_bits(), "{format}");
        }
    }
}

fn blocks(
    format: BlockFormat,
    axis: u8,
    shape: u8,
    how: Conversion,
    noise: Noise,
    values: &[f32],
    hostile: &[u8],
) {
    let inner = usize::from(shape % 7) + 1;
    let shape = [values.len() / inner, inner];
    let layout = Layout::new(&shape, usize::from(axis % 2)).expect("two dimensions");
    let values = &values[..layout.count()];
    for packing in [Packing::Unpacked, Packing::Packed] {
        let blocks = Blocks::new(format, layout, packing);
        let mut first: Option<(Vec<u8>, Vec<u8>, Vec<u32>)> = None;
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let mut scales = vec![0; blocks.scale_bytes()];
            let mut codes = vec![0; blocks.code_bytes()];
            blocks.encode_on(isa, how, noise, values, &mut scales, &mut codes).expect("fits");
            let mut back = vec![0.0; values.len()];
            blocks.decode_on(isa, &scales, &codes, &mut back).expect("fits");
            let bits = back
                .iter()
                .map(|value: &f32| if value.is_nan() { 0x7fc0_0000 } else { value.to_bits() })
                .collect();
            let found = (scales, codes, bits);
            match &first {
                None => first = Some(found),
                Some(expected) => assert!(*expected == found, "{blocks:?} {how:?} {isa:?}"),
            }
        }
        // Scales and codes that no encoder made.
        let (scales, codes) = (blocks.scale_bytes(), blocks.code_bytes());
        if hostile.len() >= scales + codes {
            let (scales, codes) = (&hostile[..scales], &hostile[scales..scales + codes]);
            blocks.decode(scales, codes, &mut vec![0.0; values.len()]).expect("fits");
        }
    }
}
