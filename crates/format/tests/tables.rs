//! Values of codes as the specifications print them, and the properties that follow.

use onesigma_format::{Conversion, Format, Overflow, Rounding, decode, encode};

/// Format, largest value, smallest normal, smallest subnormal, infinity, NaN.
/// OCP OFP8 1.0 table 2; OCP MX 1.0 tables 2 to 7; IEEE 754-2019 table 3.5; the fnuz formats as in
/// Noune et al., "8-bit numerical formats for deep neural networks", 2022, table 2.
const RANGES: &[(Format, f64, i32, i32, bool, bool)] = &[
    (Format::F16, 65504.0, -14, -24, true, true),
    (Format::BF16, 3.389_531_389_251_535_5e38, -126, -133, true, true),
    (Format::E5M2, 57344.0, -14, -16, true, true),
    (Format::E4M3, 448.0, -6, -9, false, true),
    (Format::E5M2FNUZ, 57344.0, -15, -17, false, true),
    (Format::E4M3FNUZ, 240.0, -7, -10, false, true),
    (Format::E4M3B11FNUZ, 30.0, -10, -13, false, true),
    (Format::E4M3_IEEE, 240.0, -6, -9, true, true),
    (Format::E3M4, 15.5, -2, -6, true, true),
    (Format::E3M2, 28.0, -2, -4, false, false),
    (Format::E2M3, 7.5, 0, -3, false, false),
    (Format::E2M1, 6.0, 0, -1, false, false),
    (Format::E8M0, 1.701_411_834_604_692_3e38, -127, -127, false, true),
    (Format::INT8, 127.0, 0, 0, false, false),
    (Format::INT4, 7.0, 0, 0, false, false),
];

/// 2^exponent, exact (Miri makes `powi` inexact on purpose).
fn pow2(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

#[test]
fn ranges_are_those_of_the_specifications() {
    for &(format, max, normal, subnormal, infinity, nan) in RANGES {
        assert_eq!(format.max(), max, "{format} max");
        assert_eq!(format.min_normal(), pow2(normal), "{format} normal");
        assert_eq!(format.min_subnormal(), pow2(subnormal), "{format} subnormal");
        assert_eq!(format.has_infinity(), infinity, "{format} infinity");
        assert_eq!(format.has_nan(), nan, "{format} NaN");
        assert_eq!(f64::from(decode(format.max_code(), format)), max, "{format} code of max");
    }
}

#[test]
fn the_values_of_e2m1_are_those_of_mx_table_5() {
    let values: Vec<f32> = (0..16).map(|code| decode(code, Format::E2M1)).collect();
    let positive = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    assert_eq!(values[..8], positive);
    assert_eq!(values[8..], positive.map(|value: f32| -value));
    assert!(values[8].is_sign_negative());
}

#[test]
fn special_codes_are_those_of_ofp8_table_1() {
    assert!(decode(0x7f, Format::E4M3).is_nan() && decode(0xff, Format::E4M3).is_nan());
    assert_eq!(decode(0x7e, Format::E4M3), 448.0);
    assert_eq!(decode(0x7c, Format::E5M2), f32::INFINITY);
    assert_eq!(decode(0xfc, Format::E5M2), f32::NEG_INFINITY);
    for code in [0x7d, 0x7e, 0x7f, 0xfd, 0xfe, 0xff] {
        assert!(decode(code, Format::E5M2).is_nan());
    }
    assert!(decode(0x80, Format::E4M3FNUZ).is_nan());
    assert_eq!(decode(0x00, Format::E8M0), f32::from_bits(0x0040_0000));
    assert_eq!(decode(0x7f, Format::E8M0), 1.0);
    assert!(decode(0xff, Format::E8M0).is_nan());
}

#[test]
#[cfg_attr(miri, ignore = "hours in Miri")]
fn every_value_encodes_to_its_own_code_under_every_rule() {
    for &(format, ..) in RANGES {
        for code in 0..1_u32 << format.bits() {
            let value = decode(code, format);
            let symmetric_low = -format.max() > f64::from(value);
            if value.is_nan() || symmetric_low && !value.is_infinite() {
                continue;
            }
            for rounding in [Rounding::NearestEven, Rounding::Up, Rounding::Down] {
                let how = Conversion { rounding, overflow: Overflow::Special };
                assert_eq!(encode(value, format, how, 0), code, "{format} {value}");
            }
        }
    }
}

#[test]
fn overflow_follows_the_rule() {
    let saturate = |value, format| encode(value, format, Conversion::SATURATE, 0);
    let special = |value, format| encode(value, format, Conversion::SPECIAL, 0);
    assert_eq!(saturate(1e9, Format::E4M3), 0x7e);
    assert_eq!(saturate(f32::NEG_INFINITY, Format::E5M2), 0xfb);
    assert_eq!(special(464.0, Format::E4M3), 0x7e); // the tie goes to the even 448
    assert_eq!(special(464.1, Format::E4M3), 0x7f);
    assert_eq!(special(-61440.0, Format::E5M2), 0xfc);
    assert_eq!(special(1e9, Format::E2M1), 0x7); // no special value: saturates
    assert_eq!(special(f32::INFINITY, Format::E4M3FNUZ), 0x80);
    let down = Conversion { rounding: Rounding::Down, overflow: Overflow::Special };
    assert_eq!(encode(1e9, Format::E5M2, down, 0), 0x7b); // IEEE 754-2019 §7.4
    assert_eq!(encode(-1e9, Format::E5M2, down, 0), 0xfc);
}

#[test]
fn names_go_through_text() {
    for format in Format::NAMED {
        let text = format.to_string();
        assert_eq!(Some(text.as_str()), format.name());
        assert_eq!(text.parse(), Ok(*format));
        assert_eq!(text.to_lowercase().parse(), Ok(*format));
    }
    let custom = Format::new(5, 3, -2, onesigma_format::Specials::Ieee).expect("valid");
    assert_eq!(custom.to_string(), "e5m3b-2-ieee");
    assert_eq!("e5m3b-2-ieee".parse(), Ok(custom));
    let message = "e9m9".parse::<Format>().expect_err("no such format").to_string();
    assert!(message.contains("E4M3FNUZ"), "{message}");
    for format in Format::NAMED {
        assert!(message.contains(format.name().expect("named")), "{message}");
    }
}
