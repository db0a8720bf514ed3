//! What holds for every value: order, idempotence, symmetry, distance.

use onesigma_format::{
    BlockFormat, Blocks, Conversion, Format, Layout, Noise, Overflow, Packing, Rounding, Specials,
    decode, decode_slice, encode, encode_slice,
};
use proptest::prelude::*;

fn any_format() -> impl Strategy<Value = Format> {
    let named = prop::sample::select(Format::NAMED);
    const KINDS: &[Specials] =
        &[Specials::Ieee, Specials::FiniteNan, Specials::Fnuz, Specials::Finite];
    let custom = (1_u8..=8, 0_u8..=10, -20_i16..=140, prop::sample::select(KINDS))
        .prop_filter_map("not a format", |(e, m, bias, specials)| {
            Format::new(e, m, bias, specials).ok()
        });
    prop_oneof![named, custom]
}

fn deterministic() -> impl Strategy<Value = Rounding> {
    prop::sample::select(
        &[
            Rounding::NearestEven,
            Rounding::NearestAway,
            Rounding::TowardZero,
            Rounding::Up,
            Rounding::Down,
        ][..],
    )
}

fn any_rounding() -> impl Strategy<Value = Rounding> {
    let stochastic = prop::sample::select(&[8_u8, 16, 32][..]);
    prop_oneof![deterministic(), stochastic.prop_map(|bits| Rounding::Stochastic { bits })]
}

fn any_conversion() -> impl Strategy<Value = Conversion> {
    let overflow = prop::sample::select(&[Overflow::Saturate, Overflow::Special][..]);
    (any_rounding(), overflow).prop_map(|(rounding, overflow)| Conversion { rounding, overflow })
}

fn number() -> impl Strategy<Value = f32> {
    any::<u32>().prop_map(f32::from_bits).prop_filter("NaN", |value| !value.is_nan())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 8 } else { 4000 }))]

    #[test]
    fn encoding_is_monotone(format in any_format(), rounding in deterministic(),
                            a in number(), b in number()) {
        let how = Conversion { rounding, overflow: Overflow::Saturate };
        let through = |value| decode(encode(value, format, how, 0), format);
        let (low, high) = if a <= b { (a, b) } else { (b, a) };
        prop_assert!(through(low) <= through(high), "{} {}", through(low), through(high));
    }

    #[test]
    fn encoding_twice_is_encoding_once(format in any_format(), how in any_conversion(),
                                       value in number(), random: u32, other: u32) {
        let once = encode(value, format, how, random);
        let back = decode(once, format);
        prop_assume!(!back.is_nan());
        prop_assume!(how.overflow == Overflow::Special || back.is_finite());
        prop_assert_eq!(encode(back, format, how, other), once);
    }

    #[test]
    fn sign_is_symmetric(format in any_format(), value in number(), random: u32, bits in 0_usize..3) {
        prop_assume!(format.is_signed());
        let bits = [8, 16, 32][bits];
        for rounding in [Rounding::NearestEven, Rounding::NearestAway, Rounding::TowardZero,
                         Rounding::Stochastic { bits }] {
            let how = Conversion { rounding, overflow: Overflow::Saturate };
            let plus = decode(encode(value, format, how, random), format);
            let minus = decode(encode(-value, format, how, random), format);
            prop_assert_eq!(plus, -minus);
        }
        let how = |rounding| Conversion { rounding, overflow: Overflow::Saturate };
        let up = decode(encode(value, format, how(Rounding::Up), 0), format);
        let down = decode(encode(-value, format, how(Rounding::Down), 0), format);
        prop_assert_eq!(up, -down);
    }

    #[test]
    fn nearest_is_no_farther_than_its_neighbours(format in any_format(), part in -1.0_f64..1.0,
                                                 power in 0_i32..24) {
        prop_assume!(!format.is_f32() && format.is_signed());
        let value = (format.max() * part * 2_f64.powi(-power)) as f32;
        let at = |rounding| {
            let how = Conversion { rounding, overflow: Overflow::Saturate };
            f64::from(decode(encode(value, format, how, 0), format))
        };
        let value = f64::from(value);
        let (down, up) = (at(Rounding::Down), at(Rounding::Up));
        prop_assert!(down <= value && value <= up);
        for nearest in [at(Rounding::NearestEven), at(Rounding::NearestAway)] {
            prop_assert!(nearest == down || nearest == up);
            prop_assert!((nearest - value).abs() <= (value - down).min(up - value));
        }
        for bits in [8, 16, 32] {
            let stochastic = at(Rounding::Stochastic { bits });
            prop_assert!(stochastic == down || stochastic == up);
        }
    }

    #[test]
    fn slices_are_the_scalar_codec(format in any_format(), how in any_conversion(),
                                   seed: u64, offset in 0_u64..1 << 40,
                                   bits in prop::collection::vec(any::<u32>(), 0..70)) {
        let values: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
        let noise = Noise { seed, tensor: 3, step: 9, offset };
        let mut bytes = vec![0; values.len() * format.bytes()];
        encode_slice(format, how, noise, &values, &mut bytes).expect("fits");
        let mut back = vec![0.0; values.len()];
        decode_slice(format, &bytes, &mut back).expect("fits");
        for (index, value) in values.iter().enumerate() {
            let random = match how.rounding {
                Rounding::Stochastic { bits } => {
                    onesigma_format::philox::draw(noise, index as u64, bits)
                }
                _ => 0,
            };
            let code = encode(*value, format, how, random);
            let found = bytes[index * format.bytes()..][..format.bytes()]
                .iter().rev().fold(0_u32, |all, &byte| all << 8 | u32::from(byte));
            prop_assert_eq!(found, code);
            prop_assert_eq!(back[index].to_bits(), decode(code, format).to_bits());
        }
    }

    #[test]
    fn text_names_every_format(format in any_format()) {
        prop_assert_eq!(format.to_string().parse(), Ok(format));
    }

    #[test]
    fn blocks_keep_their_largest_value_within_the_element_precision(
        number in 0..BlockFormat::NAMED.len(),
        values in prop::collection::vec(-1e20_f32..1e20, 1..100),
        rows in 1_usize..4,
    ) {
        let format = BlockFormat::NAMED[number].1;
        let len = values.len() / rows;
        let layout = Layout::new(&[len, rows], 0).expect("two dimensions");
        let values = &values[..layout.count()];
        let mut blocks = Blocks::new(format, layout, Packing::Packed);
        let largest = values.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
        blocks.tensor_scale = format.tensor_scale(largest);
        let (mut scales, mut codes) = (vec![0; blocks.scale_bytes()], vec![0; blocks.code_bytes()]);
        blocks
            .encode(Conversion::SATURATE, Noise::default(), values, &mut scales, &mut codes)
            .expect("fits");
        let mut back = vec![0.0; values.len()];
        blocks.decode(&scales, &codes, &mut back).expect("fits");
        for (value, found) in values.iter().zip(&back) {
            // Saturation at the top of an MX block loses at most a quarter of the largest value.
            prop_assert!((value - found).abs() <= 0.25 * largest, "{} {}", value, found);
        }
    }
}
