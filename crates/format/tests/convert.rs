//! Direct conversion between formats, every code of every pair.

use onesigma_format::{
    Conversion, Error, Format, Noise, Overflow, Rounding, convert_slice, decode, encode, philox,
};

fn bytes(codes: impl Iterator<Item = u32>, format: Format) -> Vec<u8> {
    codes.flat_map(|code| code.to_le_bytes()[..format.bytes()].to_vec()).collect()
}

#[test]
#[cfg_attr(miri, ignore = "hours in Miri")]
fn every_code_of_every_pair_rounds_once() {
    let noise = Noise { seed: 2, tensor: 8, step: 1, offset: 77 };
    let narrow = Format::NAMED.iter().filter(|format| !format.is_f32());
    for &from in narrow {
        let source = bytes(0..1 << from.bits(), from);
        for &to in Format::NAMED {
            for rounding in [Rounding::NearestEven, Rounding::Up, Rounding::Stochastic { bits: 16 }]
            {
                for overflow in [Overflow::Saturate, Overflow::Special] {
                    let how = Conversion { rounding, overflow };
                    let expected = bytes(
                        (0..1 << from.bits()).map(|code: u32| {
                            let draw = philox::draw(noise, code.into(), 16);
                            encode(decode(code, from), to, how, draw)
                        }),
                        to,
                    );
                    let mut found = vec![0; expected.len()];
                    convert_slice(from, to, how, noise, &source, &mut found).expect("fits");
                    assert!(found == expected, "{from} to {to} {how:?}");
                }
            }
        }
    }
}

#[test]
fn half_a_code_is_an_error() {
    let found = convert_slice(
        Format::F16,
        Format::E4M3,
        Conversion::SATURATE,
        Noise::default(),
        &[0; 5],
        &mut [0; 2],
    );
    assert_eq!(found, Err(Error::Length { what: "bytes of source codes", found: 5, expected: 4 }));
}
