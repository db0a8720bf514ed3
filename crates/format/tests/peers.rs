//! Agreement with other crates, and the list of the places where they decide otherwise.

use float8::{F8E4M3, F8E5M2};
use half::{bf16, f16};
use onesigma_format::{
    Conversion, Format, Noise, Rounding, Statistics, Storage, decode, decode_storage, encode,
    encode_slice_with_statistics, encode_storage, philox,
};

/// f32 values of every exponent, with mantissas near ties and a spread between.
fn stratified() -> impl Iterator<Item = f32> {
    (0..512_u32).flat_map(|top| {
        (0..256_u32).flat_map(move |step| {
            [0, 1, 0x3fff, 0x4000, 0x4001, 0x7fff, step.wrapping_mul(40_503) & 0x7fff]
                .map(|low| f32::from_bits(top << 23 | step << 15 | low))
        })
    })
}

#[test]
#[cfg_attr(miri, ignore = "hours in Miri")]
fn half_agrees_everywhere_but_in_the_payload_of_nan() {
    for value in stratified() {
        let ours = encode(value, Format::F16, Conversion::SPECIAL, 0) as u16;
        let theirs = f16::from_f32(value);
        if value.is_nan() {
            assert!(f16::from_bits(ours).is_nan() && theirs.is_nan());
        } else {
            assert_eq!(ours, theirs.to_bits(), "{value:e}");
        }
        let ours = encode(value, Format::BF16, Conversion::SPECIAL, 0) as u16;
        let theirs = bf16::from_f32(value);
        if value.is_nan() {
            assert!(bf16::from_bits(ours).is_nan() && theirs.is_nan());
        } else {
            assert_eq!(ours, theirs.to_bits(), "{value:e}");
        }
    }
    for bits in 0..=u16::MAX {
        let (f, b) = (f16::from_bits(bits).to_f32(), bf16::from_bits(bits).to_f32());
        assert!(f.is_nan() || f == decode(bits.into(), Format::F16));
        assert!(b.is_nan() || b == decode(bits.into(), Format::BF16));
    }
}

/// Differences: `float8` always saturates, infinities too; its E5M2 keeps the
/// payload of NaN, so that it makes 0x7e and 0x7f, but takes only the former for NaN.
#[test]
#[cfg_attr(miri, ignore = "hours in Miri")]
fn float8_agrees_with_saturation() {
    for value in stratified() {
        let e4m3 = encode(value, Format::E4M3, Conversion::SATURATE, 0) as u8;
        let e5m2 = encode(value, Format::E5M2, Conversion::SATURATE, 0) as u8;
        if value.is_nan() {
            assert!(F8E4M3::from_f32(value).is_nan() && F8E4M3::from_bits(e4m3).is_nan());
            assert!(F8E5M2::from_bits(e5m2).is_nan());
            assert!(matches!(F8E5M2::from_f32(value).to_bits() & 0x7f, 0x7e | 0x7f));
        } else {
            assert_eq!(e4m3, F8E4M3::from_f32(value).to_bits(), "{value:e}");
            assert_eq!(e5m2, F8E5M2::from_f32(value).to_bits(), "{value:e}");
        }
    }
    for bits in 0..=u8::MAX {
        let ours = decode(bits.into(), Format::E4M3);
        assert!(ours.is_nan() || ours == F8E4M3::from_bits(bits).to_f32());
        let ours = decode(bits.into(), Format::E5M2);
        assert!(ours.is_nan() || ours == F8E5M2::from_bits(bits).to_f32());
    }
}

macro_rules! microfloat_agrees {
    ($($name:ident, $type:ident, $format:ident;)*) => {$(
        #[test]
        #[cfg_attr(miri, ignore = "hours in Miri")]
        fn $name() {
            let format = Format::$format;
            let finite = !format.has_nan();
            for value in stratified() {
                let ours = encode(value, format, Conversion::SPECIAL, 0) as u8;
                let theirs = microfloat::$type::from_f32(value).to_bits();
                // Differences: the tie 464 = (448 + 480) / 2, which microfloat takes for an
                // overflow; finite values from 1.5 · 2^127 on in E8M0, where it saturates; and
                // what E8M0 does with zero of either sign.
                let beyond = f32::from_bits(0x7f40_0000)..f32::INFINITY;
                let tie = format == Format::E4M3 && value.abs() == 464.0
                    || format == Format::E8M0 && beyond.contains(&value);
                let no_zero = format == Format::E8M0 && value == 0.0;
                if tie || no_zero || value.is_nan() && finite {
                    // So is NaN where the format has none.
                    continue;
                }
                if value.is_nan() {
                    assert!(decode(ours.into(), format).is_nan());
                    assert!(decode(theirs.into(), format).is_nan());
                    continue;
                }
                assert_eq!(ours, theirs, "{value:e} ({:08x})", value.to_bits());
            }
            for code in 0..1_u32 << format.bits() {
                let theirs = microfloat::$type::from_bits(code as u8).to_f32();
                let ours = decode(code, format);
                assert!(ours == theirs || ours.is_nan() && theirs.is_nan(), "{code:x}");
            }
        }
    )*};
}

microfloat_agrees! {
    microfloat_e3m4, f8e3m4, E3M4;
    microfloat_e4m3_ieee, f8e4m3, E4M3_IEEE;
    microfloat_e4m3b11fnuz, f8e4m3b11fnuz, E4M3B11FNUZ;
    microfloat_e4m3, f8e4m3fn, E4M3;
    microfloat_e4m3fnuz, f8e4m3fnuz, E4M3FNUZ;
    microfloat_e5m2, f8e5m2, E5M2;
    microfloat_e5m2fnuz, f8e5m2fnuz, E5M2FNUZ;
    microfloat_e8m0, f8e8m0fnu, E8M0;
    microfloat_e2m1, f4e2m1fn, E2M1;
    microfloat_e2m3, f6e2m3fn, E2M3;
    microfloat_e3m2, f6e3m2fn, E3M2;
}

#[test]
fn storage_types_hold_the_codes_of_their_format() {
    fn check<T: Storage>() {
        let mut src = vec![0.0; 3000];
        philox::fill_normal(Noise { seed: 4, ..Noise::default() }, &mut src);
        let noise = Noise { seed: 1, offset: 9, ..Noise::default() };
        for rounding in [Rounding::NearestEven, Rounding::Stochastic { bits: 16 }] {
            let how = Conversion { rounding, ..Conversion::SATURATE };
            let mut stored = vec![T::from_code(0); src.len()];
            encode_storage(how, noise, &src, &mut stored).expect("same length");
            let mut back = vec![0.0; src.len()];
            decode_storage(&stored, &mut back).expect("same length");
            for index in 0..src.len() {
                let draw = philox::draw(noise, index as u64, 16);
                let code = encode(src[index], T::FORMAT, how, draw);
                assert_eq!(u32::from(stored[index].to_code()), code);
                assert_eq!(back[index], decode(code, T::FORMAT));
            }
        }
    }
    check::<f16>();
    check::<bf16>();
    check::<F8E4M3>();
    check::<F8E5M2>();
}

#[test]
fn statistics_count_what_is_lost() {
    let src = [0.0, -0.0, 1e-9, -1e-9, 1.0, 500.0, -f32::INFINITY, f32::NAN, 448.0];
    for (format, underflow, overflow) in [
        (Format::E4M3, 2, 2),
        (Format::E4M3FNUZ, 2, 3),
        (Format::E8M0, 0, 1),
        (Format::INT8, 2, 3),
        (Format::F16, 2, 1),
        (Format::F32, 0, 1),
    ] {
        for how in [Conversion::SATURATE, Conversion::SPECIAL] {
            let mut dst = vec![0; src.len() * format.bytes()];
            let noise = Noise::default();
            let found = encode_slice_with_statistics(format, how, noise, &src, &mut dst);
            let expected =
                Statistics { count: 9, max_abs: f32::INFINITY, underflow, overflow, nan: 1 };
            assert_eq!(found, Ok(expected), "{format}");
            let mut plain = vec![0; dst.len()];
            onesigma_format::encode_slice(format, how, noise, &src, &mut plain).expect("fits");
            assert_eq!(plain, dst);
        }
    }
}

#[test]
fn serde_writes_names() {
    let text = serde_json::to_string(&Format::E4M3).expect("a string");
    assert_eq!(text, "\"E4M3\"");
    let how = Conversion { rounding: Rounding::Stochastic { bits: 8 }, ..Conversion::SPECIAL };
    let text = serde_json::to_string(&how).expect("an object");
    assert_eq!(text, r#"{"rounding":{"stochastic":{"bits":8}},"overflow":"special"}"#);
    for format in Format::NAMED {
        let text = serde_json::to_string(format).expect("a string");
        assert_eq!(serde_json::from_str::<Format>(&text).expect("a name"), *format);
    }
}
