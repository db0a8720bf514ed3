//! The bulk codecs against the scalar reference, on every instruction set of this machine.

use onesigma_format::{
    Conversion, Format, Isa, Noise, Overflow, Rounding, decode, decode_slice_on, encode,
    encode_slice_on, philox,
};

fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available())
}

fn codes(bytes: &[u8], format: Format) -> Vec<u32> {
    bytes
        .chunks_exact(format.bytes())
        .map(|code| code.iter().rev().fold(0, |all, &byte| all << 8 | u32::from(byte)))
        .collect()
}

/// Every exponent and sign with the mantissas near ties, near the ends and a spread between.
fn stratified() -> Vec<f32> {
    let mut values = Vec::new();
    for top in 0..512_u32 {
        for step in 0..128_u32 {
            let tie = step << 16;
            for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff, step.wrapping_mul(40_503) & 0xffff] {
                values.push(f32::from_bits(top << 23 | tie | low));
            }
        }
    }
    values
}

fn formats() -> Vec<Format> {
    use onesigma_format::Specials::{Fnuz, Ieee, Integer};
    let mut formats = Format::NAMED.to_vec();
    formats.extend([
        Format::new(6, 9, 31, Ieee).expect("valid"),
        Format::new(5, 3, 15, Ieee).expect("valid"),
        Format::new(4, 0, 8, Fnuz).expect("valid"),
        Format::new(0, 7, 6, Integer).expect("valid"), // MXINT8
        Format::new(8, 3, 130, Ieee).expect("valid"),  // below f32's normal range
    ]);
    formats
}

#[test]
#[cfg_attr(miri, ignore = "hours in Miri")]
fn bulk_encoding_is_the_reference() {
    let values = stratified();
    let noise = Noise { seed: 7, tensor: 3, step: 11, offset: 5 };
    for format in formats() {
        for rounding in Rounding::ALL {
            for overflow in [Overflow::Saturate, Overflow::Special] {
                let how = Conversion { rounding, overflow };
                let draw = |index| match rounding {
                    Rounding::Stochastic { bits } => philox::draw(noise, index as u64, bits),
                    _ => 0,
                };
                let expected: Vec<u32> = values
                    .iter()
                    .enumerate()
                    .map(|(index, value)| encode(*value, format, how, draw(index)))
                    .collect();
                for isa in isas() {
                    let mut bytes = vec![0xaa; values.len() * format.bytes()];
                    encode_slice_on(isa, format, how, noise, &values, &mut bytes).expect("fits");
                    let found = codes(&bytes, format);
                    let wrong = (0..values.len()).find(|&i| found[i] != expected[i]);
                    if let Some(i) = wrong {
                        panic!(
                            "{format} {how:?} {isa:?}: {:e} ({:08x}) gave {:x}, not {:x}",
                            values[i],
                            values[i].to_bits(),
                            found[i],
                            expected[i]
                        );
                    }
                }
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "hours in Miri")]
fn bulk_decoding_is_the_reference_for_every_code() {
    for format in formats().into_iter().filter(|format| !format.is_f32()) {
        let all: Vec<u32> = (0..1_u32 << format.bits()).collect();
        let bytes: Vec<u8> =
            all.iter().flat_map(|code| code.to_le_bytes()[..format.bytes()].to_vec()).collect();
        for isa in isas() {
            let mut values = vec![0.0; all.len()];
            decode_slice_on(isa, format, &bytes, &mut values).expect("fits");
            for (code, value) in all.iter().zip(&values) {
                let expected = decode(*code, format);
                assert_eq!(value.to_bits(), expected.to_bits(), "{format} {isa:?} {code:x}");
            }
        }
    }
}
