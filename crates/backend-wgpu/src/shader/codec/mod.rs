//! How codes become f32 and back, in WGSL: one pair of functions for each format and rule in use.

mod decode;
mod encode;

use std::collections::BTreeMap;

use onesigma_format::{Conversion, Format, Overflow, Rounding, Specials};
use onesigma_graph::DType;

use self::decode::decode;
use self::encode::{encode, encode_exact, encode_exact_f16, encode_near, is_shifted, shift};

const PACK: &str = include_str!("../../wgsl/pack.wgsl");
const PHILOX: &str = include_str!("../../wgsl/philox.wgsl");
const MATH: &str = include_str!("../../wgsl/math.wgsl");
const PLAIN_NAN: &str = include_str!("../../wgsl/plain_nan.wgsl");
const NORMAL: &str = include_str!("../../wgsl/normal.wgsl");

/// Whether the shaders have codecs for a type: all named formats, and others whose normal numbers
/// are normal in f32, too.
pub(crate) fn is_known(dtype: DType) -> bool {
    match dtype {
        DType::U32 => true,
        DType::Float(format) => {
            Format::NAMED.contains(&format)
                || (format.min_normal() >= f64::from(f32::MIN_POSITIVE)
                    && format.min_subnormal() >= f64::from(f32::MIN_POSITIVE)
                    && format.specials() != Specials::Scale)
        }
    }
}

/// The functions that a shader calls, each once.
#[derive(Debug, Default)]
pub(crate) struct Library {
    functions: BTreeMap<(u8, String), String>,
}

impl Library {
    /// The text of all of them.
    pub(crate) fn text(&self) -> String {
        let mut text = PACK.to_owned();
        for function in self.functions.values() {
            text.push_str(function);
        }
        text
    }

    /// Elementary functions.
    pub(crate) fn math(&mut self) {
        self.functions.insert((0, "math".to_owned()), MATH.to_owned());
    }

    /// Random bits.
    pub(crate) fn philox(&mut self) {
        self.functions.insert((0, "philox".to_owned()), PHILOX.to_owned());
    }

    /// Normal random numbers.
    pub(crate) fn normal(&mut self) {
        self.philox();
        self.functions.insert((1, "normal".to_owned()), NORMAL.to_owned());
    }

    /// A function of the caller's.
    pub(crate) fn add(&mut self, name: &str, text: String) {
        self.functions.insert((3, name.to_owned()), text);
    }

    /// Bits of the f32 values of `codes`, a `vec4<u32>`.
    pub(crate) fn decoded(&mut self, dtype: DType, codes: &str) -> String {
        let format = match dtype {
            DType::U32 => return format!("bitcast<vec4<u32>>(vec4<f32>({codes}))"),
            DType::Float(format) if format.is_f32() => return codes.to_owned(),
            DType::Float(format) => format,
        };
        let name = name_of(format);
        self.functions.insert((2, format!("decode_{name}")), decode(format, &name));
        format!("decode_{name}({codes})")
    }

    /// As [`encoded`](Self::encoded) for values of another type that [`embeds`] in this one.
    pub(crate) fn embedded(&mut self, format: Format, how: Conversion, bits: &str) -> String {
        let name = format!("{}_exact_{}", name_of(format), rule_name(how));
        let over = overflow_code(format, how);
        let text = match format == Format::F16 {
            true => encode_exact_f16(over, &name),
            false => encode_exact(format, over, &name),
        };
        self.functions.insert((2, format!("encode_{name}")), text);
        format!("encode_{name}({bits})")
    }

    /// As [`encoded`](Self::encoded) for `codes` of another type, where these need not be decoded.
    pub(crate) fn recoded(
        &mut self,
        from: DType,
        to: DType,
        how: Conversion,
        codes: &str,
    ) -> Option<String> {
        let (from, to) = (from.format()?, to.format()?);
        if !is_shifted(from, to, how) {
            return None;
        }
        let shifted = name_of(from);
        self.functions.insert((2, format!("shift_{shifted}")), shift(from, &shifted));
        let name = format!("{}_of_{shifted}_{}", name_of(to), rule_name(how));
        let text = encode_near(to, overflow_code(to, how), &name, Some(from));
        self.functions.insert((2, format!("encode_{name}")), text);
        Some(format!("encode_{name}(shift_{shifted}({codes}))"))
    }

    /// As [`decoded`](Self::decoded) where the bits themselves are a result: NaN without payload.
    pub(crate) fn plain(&mut self, from: DType, bits: &str) -> String {
        if from != DType::Float(Format::BF16) {
            return bits.to_owned();
        }
        self.functions.insert((2, "plain_nan".to_owned()), PLAIN_NAN.to_owned());
        format!("plain_nan({bits})")
    }

    /// Codes of the f32 values whose bits are `bits`; `random` holds the random bits of a
    /// stochastic rule.
    pub(crate) fn encoded(
        &mut self,
        dtype: DType,
        how: Conversion,
        bits: &str,
        random: &str,
    ) -> String {
        let Some(format) = dtype.format().filter(|format| !format.is_f32()) else {
            return bits.to_owned();
        };
        let name = format!("{}_{}", name_of(format), rule_name(how));
        self.functions.insert((2, format!("encode_{name}")), encode(format, how, &name));
        match how.random_bits() {
            0 => format!("encode_{name}({bits})"),
            _ => format!("encode_{name}({bits}, {random})"),
        }
    }
}

/// A name that WGSL takes.
fn name_of(format: Format) -> String {
    let named = Format::NAMED.contains(&format);
    let plain = format.to_string().to_lowercase().replace(|c: char| !c.is_alphanumeric(), "_");
    match named {
        true => plain,
        false => format!("{plain}_{}", format.bias().unsigned_abs()),
    }
}

fn rule_name(how: Conversion) -> String {
    let rounding = match how.rounding {
        Rounding::NearestEven => "even".to_owned(),
        Rounding::NearestAway => "away".to_owned(),
        Rounding::TowardZero => "zero".to_owned(),
        Rounding::Up => "up".to_owned(),
        Rounding::Down => "down".to_owned(),
        Rounding::Stochastic { bits } => format!("random{bits}"),
    };
    match how.overflow {
        Overflow::Saturate => rounding,
        Overflow::Special => format!("{rounding}_special"),
    }
}

/// Whether a format has mantissa and exponent, and is no scale or integer.
fn is_float(format: Format) -> bool {
    !matches!(format.specials(), Specials::Scale | Specials::Integer)
}

fn sign_bit(format: Format) -> u32 {
    if format.is_signed() { 1 << (format.bits() - 1) } else { 0 }
}

/// Exponent of the smallest normal number; integers are floats that are all subnormal.
fn min_exponent(format: Format) -> i32 {
    match format.specials() {
        Specials::Integer => format.mantissa_bits() as i32 - format.bias(),
        Specials::Scale => -format.bias(),
        _ => 1 - format.bias(),
    }
}

/// Exponent of the smallest positive value.
fn quantum_exponent(format: Format) -> i32 {
    min_exponent(format) - format.mantissa_bits() as i32
}

const WORDS: &str = "vec4<u32>";

/// What a magnitude beyond the largest becomes.
fn overflow_code(format: Format, how: Conversion) -> u32 {
    let special = how.overflow == Overflow::Special && format.has_nan();
    if special { format.max_code() + 1 } else { format.max_code() }
}

/// Whether every value of `from` is one of `to`, and none but 0 below its smallest normal number.
pub(crate) fn embeds(from: DType, to: DType) -> bool {
    let float =
        |dtype: DType| dtype.format().filter(|format| !format.is_f32() && is_float(*format));
    let (Some(from), Some(to)) = (float(from), float(to)) else { return false };
    from.mantissa_bits() <= to.mantissa_bits()
        && from.max() <= to.max()
        && from.min_subnormal() >= to.min_normal()
}
