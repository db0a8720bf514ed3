//! Block formats against a direct reading of the OCP MX 1.0 specification (§5, §6.3) and of
//! NVIDIA's description of NVFP4, one block at a time.

use onesigma_format::{
    BlockFormat, Blocks, Conversion, Error, Format, Isa, Layout, Noise, Overflow, Packing,
    Rounding, decode, encode, philox,
};

fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available())
}

/// floor(log2(x)) of a positive number, by comparison.
fn floor_log2(x: f64) -> i32 {
    let mut exponent = -160;
    while 2f64.powi(exponent + 1) <= x {
        exponent += 1;
    }
    exponent
}

struct Expected {
    scales: Vec<u8>,
    codes: Vec<u8>,
    values: Vec<f32>,
}

/// The codes of each block, found without any of the crate's block code.
fn expected(blocks: &Blocks, how: Conversion, noise: Noise, src: &[f32]) -> Expected {
    let Layout { outer, len, inner } = blocks.layout;
    let (format, block) = (blocks.format, blocks.format.block_len());
    let mut scales = vec![0; blocks.scale_bytes()];
    let mut codes = vec![0; src.len()];
    let mut values = vec![0.0; src.len()];
    for o in 0..outer {
        for b in 0..len.div_ceil(block) {
            for i in 0..inner {
                let rows = b * block..((b + 1) * block).min(len);
                let members: Vec<usize> = rows.map(|row| (o * len + row) * inner + i).collect();
                let largest = members.iter().map(|&m| src[m].abs()).fold(0.0, |a: f32, b| {
                    if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) }
                });
                let (scale, step) = expected_scale(format, blocks.tensor_scale, largest);
                scales[(o * len.div_ceil(block) + b) * inner + i] = scale;
                for m in members {
                    let draw = match how.rounding {
                        Rounding::Stochastic { bits } => philox::draw(noise, m as u64, bits),
                        _ => 0,
                    };
                    if largest.is_finite() && step > 0.0 {
                        let scaled = src[m] * (1.0 / step);
                        codes[m] = encode(scaled, format.element(), how, draw) as u8;
                    } else if largest.is_finite() && src[m].is_sign_negative() {
                        codes[m] = encode(-0.0, format.element(), how, draw) as u8;
                    }
                    values[m] = decode(codes[m].into(), format.element()) * step;
                }
            }
        }
    }
    Expected { scales, codes, values }
}

fn expected_scale(format: BlockFormat, tensor_scale: f32, largest: f32) -> (u8, f32) {
    if !largest.is_finite() {
        return (format.scale().nan_code() as u8, f32::NAN);
    }
    if format == BlockFormat::NVFP4 {
        let quotient = largest / (6.0 * tensor_scale);
        let scale = encode(quotient, Format::E4M3, Conversion::SATURATE, 0);
        return (scale as u8, decode(scale, Format::E4M3) * tensor_scale);
    }
    let element_exponent = floor_log2(format.element().max());
    let shared = floor_log2(f64::from(largest)) - element_exponent;
    let shared = shared.clamp(-127, 127);
    ((shared + 127) as u8, decode((shared + 127) as u32, Format::E8M0) * tensor_scale)
}

/// Bits of packed codes, laid one after the other from the lowest bit up.
fn packed(codes: &[u8], bits: u32) -> Vec<u8> {
    let mut bytes = vec![0; (codes.len() * bits as usize).div_ceil(8)];
    for (element, code) in codes.iter().enumerate() {
        for bit in 0..bits as usize {
            let place = element * bits as usize + bit;
            bytes[place / 8] |= (code >> bit & 1) << (place % 8);
        }
    }
    bytes
}

fn source(count: usize) -> Vec<f32> {
    let mut values = vec![0.0; count];
    philox::fill_normal(Noise { seed: 5, ..Noise::default() }, &mut values);
    for (index, value) in values.iter_mut().enumerate() {
        *value *= 2f32.powi((index / 97 % 60) as i32 - 30); // blocks of different magnitude
        if index % 53 == 0 {
            *value = if index % 2 == 0 { 0.0 } else { -0.0 };
        }
    }
    values
}

fn check(blocks: Blocks, how: Conversion, src: &[f32]) {
    let noise = Noise { seed: 9, tensor: 1, step: 4, offset: 3 };
    let expected = expected(&blocks, how, noise, src);
    let bits = blocks.format.element().bits();
    let expected_bytes = match blocks.packing {
        Packing::Packed => packed(&expected.codes, bits),
        Packing::Unpacked => expected.codes.clone(),
    };
    for isa in isas() {
        let what = format!("{blocks:?} {how:?} {isa:?}");
        let mut scales = vec![0xaa; blocks.scale_bytes()];
        let mut bytes = vec![0xaa; blocks.code_bytes()];
        blocks.encode_on(isa, how, noise, src, &mut scales, &mut bytes).expect("fits");
        assert_eq!(scales, expected.scales, "{what}");
        assert!(bytes == expected_bytes, "{what}");
        let mut values = vec![1.0; src.len()];
        blocks.decode_on(isa, &scales, &bytes, &mut values).expect("fits");
        for (found, expected) in values.iter().zip(&expected.values) {
            let same = found.to_bits() == expected.to_bits();
            assert!(same || found.is_nan() && expected.is_nan(), "{what} {found} {expected}");
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "hours in Miri")]
fn any_axis_any_length_any_rule() {
    let shapes: [&[usize]; 7] =
        [&[1], &[4096 + 37], &[5, 64], &[3, 35], &[7, 33, 3], &[2, 64, 130], &[2, 0, 3]];
    for (_, format) in BlockFormat::NAMED {
        for shape in shapes {
            let src = source(shape.iter().product());
            for axis in 0..shape.len() {
                for packing in [Packing::Unpacked, Packing::Packed] {
                    for rounding in Rounding::ALL {
                        let layout = Layout::new(shape, axis).expect("axis exists");
                        let mut blocks = Blocks::new(*format, layout, packing);
                        if *format == BlockFormat::NVFP4 {
                            let largest = src.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
                            blocks.tensor_scale = format.tensor_scale(largest);
                        }
                        check(blocks, Conversion { rounding, overflow: Overflow::Saturate }, &src);
                    }
                }
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "hours in Miri")]
fn extreme_blocks() {
    for (_, format) in BlockFormat::NAMED {
        for value in [
            0.0,
            f32::MAX,
            -f32::MAX,
            f32::MIN_POSITIVE,
            f32::from_bits(1),
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
        ] {
            let mut src = source(96);
            src[40] = value;
            src[64..].fill(value);
            for layout in [Layout::line(96), Layout::new(&[48, 2], 0).expect("axis exists")] {
                for packing in [Packing::Unpacked, Packing::Packed] {
                    check(Blocks::new(*format, layout, packing), Conversion::SATURATE, &src);
                    check(Blocks::new(*format, layout, packing), Conversion::SPECIAL, &src);
                }
            }
        }
    }
}

#[test]
fn nvfp4_with_tensor_scale_reaches_the_largest_value() {
    let src = [0.0, 1e-3, 5.0, -20.0];
    let mut blocks = Blocks::new(BlockFormat::NVFP4, Layout::line(4), Packing::Packed);
    blocks.tensor_scale = BlockFormat::NVFP4.tensor_scale(20.0);
    let (mut scales, mut codes, mut back) = ([0], [0; 2], [0.0; 4]);
    blocks
        .encode(Conversion::SATURATE, Noise::default(), &src, &mut scales, &mut codes)
        .expect("fits");
    blocks.decode(&scales, &codes, &mut back).expect("fits");
    assert_eq!(scales[0], 0x7e, "the largest block has the largest E4M3 scale");
    assert!((back[3] + 20.0).abs() < 1e-5, "{back:?}");
}

#[test]
fn wrong_arguments_are_errors() {
    assert_eq!(Layout::new(&[2, 3], 2), Err(Error::Axis { axis: 2, dimensions: 2 }));
    assert_eq!(Layout::new(&[usize::MAX, 3], 0), Err(Error::TooLarge));
    let mut blocks = Blocks::new(BlockFormat::MXFP4, Layout::line(8), Packing::Packed);
    let (mut scales, mut codes) = ([0], [0; 8]);
    let encode = |blocks: &Blocks, scales: &mut [u8], codes: &mut [u8]| {
        blocks.encode(Conversion::SATURATE, Noise::default(), &[0.0; 8], scales, codes)
    };
    let short = encode(&blocks, &mut scales, &mut codes);
    assert_eq!(short, Err(Error::Length { what: "bytes of block codes", found: 8, expected: 4 }));
    blocks.tensor_scale = 0.0;
    let zero = encode(&blocks, &mut scales, &mut codes[..4]);
    assert_eq!(zero, Err(Error::TensorScale { scale: 0.0 }));
}
