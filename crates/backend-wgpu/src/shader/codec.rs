//! How codes become f32 and back, in WGSL: one pair of functions for each format and rule in use.

use std::collections::BTreeMap;

use onesigma_format::{Conversion, Format, Overflow, Rounding, Specials};
use onesigma_graph::DType;

use super::{fill, scalar_literal};

const PACK: &str = include_str!("../wgsl/pack.wgsl");
const PHILOX: &str = include_str!("../wgsl/philox.wgsl");
const MATH: &str = include_str!("../wgsl/math.wgsl");
const PLAIN_NAN: &str = include_str!("../wgsl/plain_nan.wgsl");
const NORMAL: &str = include_str!("../wgsl/normal.wgsl");

/// Random bits that a conversion draws for an element; 0 for deterministic ones.
pub(crate) fn random_bits(how: Conversion) -> u32 {
    match how.rounding {
        Rounding::Stochastic { bits } => bits.into(),
        _ => 0,
    }
}

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
        match random_bits(how) {
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

fn decode(format: Format, name: &str) -> String {
    if format == Format::BF16 {
        return include_str!("../wgsl/decode_bf16.wgsl").to_owned();
    }
    let p = format.mantissa_bits();
    let quantum = (quantum_exponent(format) + 127) as u32;
    match format.specials() {
        Specials::Scale => return include_str!("../wgsl/decode_scale.wgsl").to_owned(),
        Specials::Integer => {
            return fill(
                include_str!("../wgsl/decode_integer.wgsl"),
                &[
                    ("format", format.to_string()),
                    ("name", name.to_owned()),
                    ("sign", sign_bit(format).to_string()),
                    ("mask", ((1_u32 << format.bits()) - 1).to_string()),
                    ("quantum", quantum.to_string()),
                ],
            );
        }
        _ => {}
    }
    let max = format.max_code();
    let nan = format!("{WORDS}(0x7fc00000u)");
    let specials = match format.specials() {
        // Rare, so that they cost little more than the question.
        Specials::Ieee => format!(
            "if (any(magnitude > {WORDS}({max}u))) {{\n        \
             bits = select(bits, {WORDS}(0x7f800000u), magnitude > {WORDS}({max}u));\n        \
             bits = select(bits, {nan}, magnitude > {WORDS}({}u));\n    }}\n    \
             return sign | bits;",
            max + 1
        ),
        Specials::FiniteNan => format!(
            "bits = select(bits, {nan}, magnitude > {WORDS}({max}u));\n    return sign | bits;"
        ),
        Specials::Fnuz => {
            let (mask, sign) = ((1_u32 << format.bits()) - 1, sign_bit(format));
            format!(
                "return select(sign | bits, {nan}, (code & {WORDS}({mask}u)) == {WORDS}({sign}u));"
            )
        }
        _ => "return sign | bits;".to_owned(),
    };
    fill(
        include_str!("../wgsl/decode.wgsl"),
        &[
            ("format", format.to_string()),
            ("name", name.to_owned()),
            ("magnitude", (sign_bit(format) - 1).to_string()),
            ("to_sign", (32 - format.bits()).to_string()),
            ("widen", (23 - p).to_string()),
            ("rebias", (((127 - format.bias()) as u32) << 23).to_string()),
            ("min_normal", scalar_literal(2f64.powi(min_exponent(format)))),
            ("first_normal", (1_u32 << p).to_string()),
            ("specials", specials),
        ],
    )
}

/// What a magnitude beyond the largest becomes.
fn overflow_code(format: Format, how: Conversion) -> u32 {
    let special = how.overflow == Overflow::Special && format.has_nan();
    if special { format.max_code() + 1 } else { format.max_code() }
}

/// Whether every value of `from` is one of `to`, and none but 0 below its smallest normal number.
pub(crate) fn embeds(from: DType, to: DType) -> bool {
    let float = |dtype: DType| {
        dtype.format().filter(|format| {
            !format.is_f32() && !matches!(format.specials(), Specials::Scale | Specials::Integer)
        })
    };
    let (Some(from), Some(to)) = (float(from), float(to)) else { return false };
    from.mantissa_bits() <= to.mantissa_bits()
        && from.max() <= to.max()
        && from.min_subnormal() >= to.min_normal()
}

fn encode(format: Format, how: Conversion, name: &str) -> String {
    let special = how.overflow == Overflow::Special;
    let max = format.max_code();
    let over = overflow_code(format, how);
    if format == Format::BF16 && how.rounding == Rounding::NearestEven {
        return fill(
            include_str!("../wgsl/encode_bf16.wgsl"),
            &[("name", name.to_owned()), ("largest", over.to_string())],
        );
    }
    let is_float = !matches!(format.specials(), Specials::Scale | Specials::Integer);
    if how.rounding == Rounding::NearestEven && is_float && quantum_exponent(format) > -120 {
        return encode_near(format, over, name);
    }
    let scale = format.specials() == Specials::Scale;
    let round = match how.rounding {
        Rounding::NearestEven => {
            "(fraction > half) | ((fraction == half) & ((whole & vec4<u32>(1u)) == vec4<u32>(1u)))"
                .to_owned()
        }
        Rounding::NearestAway => "fraction >= half".to_owned(),
        Rounding::TowardZero => "vec4<bool>(false)".to_owned(),
        Rounding::Up => "!negative & (fraction != vec4<u32>(0u))".to_owned(),
        Rounding::Down => "negative & (fraction != vec4<u32>(0u))".to_owned(),
        Rounding::Stochastic { bits } => stochastic(bits.into()),
    };
    // A rule that points toward zero stops at the largest value.
    let plain = format!("{WORDS}({over}u)");
    let stop = format!("{WORDS}({max}u)");
    let overflow = match how.rounding {
        Rounding::TowardZero => stop.clone(),
        Rounding::Up => format!("select({plain}, {stop}, negative)"),
        Rounding::Down => format!("select({stop}, {plain}, negative)"),
        _ => plain.clone(),
    };
    let nan = format.nan_code();
    let mut specials =
        format!("code = select(code, {plain}, magnitude == {WORDS}(0x7f800000u));\n");
    let mut line = |text: String| {
        specials.push_str("    ");
        specials.push_str(&text);
        specials.push('\n');
    };
    line(format!("code = select(code, {WORDS}(0u), magnitude == {WORDS}(0u));"));
    match format.specials() {
        Specials::Scale => {
            line(format!("code = select(code, {WORDS}(0u), exponent < {}(0));", "vec4<i32>"));
            let low = if special { nan } else { 0 };
            line(format!(
                "code = select(code, {WORDS}({low}u), negative & (magnitude != {WORDS}(0u)));"
            ));
        }
        Specials::Integer => {
            let mask = (1_u32 << format.bits()) - 1;
            line(format!(
                "code = select(code, ({WORDS}(0u) - code) & {WORDS}({mask}u), negative);"
            ));
        }
        Specials::Fnuz => line(format!(
            "code = code | select({WORDS}(0u), {WORDS}({}u), negative & (code != {WORDS}(0u)));",
            sign_bit(format)
        )),
        _ => line(signed(format)),
    }
    line(nan_line(format));
    line("return code;".to_owned());
    fill(
        include_str!("../wgsl/encode.wgsl"),
        &[
            ("format", format.to_string()),
            ("rule", rule_name(how)),
            ("name", name.to_owned()),
            ("random", if random_bits(how) == 0 { "" } else { ", random: vec4<u32>" }.to_owned()),
            ("minimum", (min_exponent(format) + 127).to_string()),
            ("p", format.mantissa_bits().to_string()),
            ("narrow", (23 - format.mantissa_bits()).to_string()),
            ("round", round),
            ("hidden", if scale { " - vec4<u32>(1u)" } else { "" }.to_owned()),
            ("overflow", overflow),
            ("max", max.to_string()),
            ("specials", specials.trim_end().to_owned()),
        ],
    )
}

fn signed(format: Format) -> String {
    format!("code = code | select({WORDS}(0u), {WORDS}({}u), negative);", sign_bit(format))
}

/// A NaN keeps its sign where the format has one for it.
fn nan_line(format: Format) -> String {
    let nan = format.nan_code();
    let unsigned = !format.has_nan() || format.specials() == Specials::Fnuz;
    let code = match unsigned || !format.is_signed() {
        true => format!("{WORDS}({nan}u)"),
        false => format!("select({WORDS}({nan}u), {WORDS}({}u), negative)", nan | sign_bit(format)),
    };
    format!("code = select(code, {code}, magnitude > {WORDS}(0x7f800000u));")
}

fn encode_near(format: Format, over: u32, name: &str) -> String {
    let p = format.mantissa_bits();
    let least = (min_exponent(format) + 127) as u32;
    let nan = format!("{WORDS}({}u)", format.nan_code());
    let is_fnuz = format.specials() == Specials::Fnuz;
    let [signed, nan] = match is_fnuz {
        // There is no negative zero.
        true => [format!("select({WORDS}(0u), sign, code != {WORDS}(0u))"), nan],
        false if format.has_nan() => ["sign".to_owned(), format!("{nan} | sign")],
        false => ["sign".to_owned(), nan],
    };
    fill(
        include_str!("../wgsl/encode_near.wgsl"),
        &[
            ("format", format.to_string()),
            ("name", name.to_owned()),
            ("min_normal_bits", (least << 23).to_string()),
            ("per_quantum", ((254 + p) << 23).to_string()),
            ("narrow", (23 - p).to_string()),
            ("none", (0x4b00_0000 + (least << p)).to_string()),
            ("over", over.to_string()),
            ("to_sign", (32 - format.bits()).to_string()),
            ("sign", sign_bit(format).to_string()),
            ("signed", signed),
            ("nan", nan),
        ],
    )
}

fn encode_exact(format: Format, over: u32, name: &str) -> String {
    let nan = format.nan_code();
    let sign =
        format!("(bits >> {WORDS}({}u)) & {WORDS}({}u)", 32 - format.bits(), sign_bit(format));
    let specials = match (format.specials(), format.has_nan()) {
        (Specials::Fnuz, _) => format!(
            "code = code | select({WORDS}(0u), {sign}, code != {WORDS}(0u));\n    {}\n    return code;",
            nan_line(format)
        ),
        (_, true) => format!(
            "code = select(code, {WORDS}({nan}u), magnitude > {WORDS}(0x7f800000u));\n    \
             return code | ({sign});"
        ),
        (_, false) => format!(
            "code = code | ({sign});\n    \
             return select(code, {WORDS}({nan}u), magnitude > {WORDS}(0x7f800000u));"
        ),
    };
    let p = format.mantissa_bits();
    fill(
        include_str!("../wgsl/encode_exact.wgsl"),
        &[
            ("format", format.to_string()),
            ("name", name.to_owned()),
            ("narrow", (23 - p).to_string()),
            ("rebias", (((127 - format.bias()) as u32) << p).to_string()),
            ("overflow", format!("min(rounded, {WORDS}({over}u))")),
            ("specials", specials),
        ],
    )
}

/// Of numbers that F16 has, none of them subnormal in it.
fn encode_exact_f16(over: u32, name: &str) -> String {
    let sign = format!("((bits >> {WORDS}(16u)) & {WORDS}(0x8000u))");
    let nan = Format::F16.nan_code();
    let specials = format!(
        "code = select(code, {sign} | {WORDS}({over}u), magnitude >= {WORDS}(0x7f800000u));\n        \
         code = select(code, {sign} | {WORDS}({nan}u), magnitude > {WORDS}(0x7f800000u));"
    );
    fill(
        include_str!("../wgsl/encode_exact_f16.wgsl"),
        &[("name", name.to_owned()), ("specials", specials)],
    )
}

/// Whether the fraction, cut to `bits` bits, and as many random bits carry.
fn stochastic(bits: u32) -> String {
    let cut = format!(
        "select(fraction << min({WORDS}({bits}u) - min(all, {WORDS}({bits}u)), {WORDS}(31u)), \
         fraction >> min(max(all, {WORDS}({bits}u)) - {WORDS}({bits}u), {WORDS}(31u)), \
         all >= {WORDS}({bits}u))"
    );
    match bits {
        32 => format!("({cut} + random) < random"),
        _ => {
            let mask = (1_u32 << bits) - 1;
            format!("({cut} + (random & {WORDS}({mask}u))) > {WORDS}({mask}u)")
        }
    }
}
