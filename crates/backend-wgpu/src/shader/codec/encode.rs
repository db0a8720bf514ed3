//! f32 as codes, by every rule.

use onesigma_format::{Conversion, Format, Overflow, Rounding, Specials};

use super::{WORDS, is_float, min_exponent, overflow_code, quantum_exponent, rule_name, sign_bit};
use crate::shader::fill;

/// The function `encode_{name}`.
pub(super) fn encode(format: Format, how: Conversion, name: &str) -> String {
    let special = how.overflow == Overflow::Special;
    let max = format.max_code();
    let over = overflow_code(format, how);
    if format == Format::BF16 && how.rounding == Rounding::NearestEven {
        return fill(
            include_str!("../../wgsl/encode_bf16.wgsl"),
            &[("name", name.to_owned()), ("largest", over.to_string())],
        );
    }
    if how.rounding == Rounding::NearestEven && is_float(format) && quantum_exponent(format) > -120
    {
        return encode_near(format, over, name, None);
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
        include_str!("../../wgsl/encode.wgsl"),
        &[
            ("format", format.to_string()),
            ("rule", rule_name(how)),
            ("name", name.to_owned()),
            ("random", if how.random_bits() == 0 { "" } else { ", random: vec4<u32>" }.to_owned()),
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

/// Nearest-even, of f32 or of the codes of `shifted`, see [`shift`].
pub(super) fn encode_near(
    format: Format,
    over: u32,
    name: &str,
    shifted: Option<Format>,
) -> String {
    let p = format.mantissa_bits();
    let below = shifted.map_or(0, |from| 127 - from.bias());
    let least = (min_exponent(format) + 127 - below) as u32;
    let special =
        shifted.map_or(0x7f80_0000, |from| (from.max_code() + 1) << (23 - from.mantissa_bits()));
    let of = shifted.map_or_else(String::new, |from| format!(", of {from} as `shift` makes it"));
    let nan = format!("{WORDS}({}u)", format.nan_code());
    let is_fnuz = format.specials() == Specials::Fnuz;
    let [signed, nan] = match is_fnuz {
        // There is no negative zero.
        true => [format!("select({WORDS}(0u), sign, code != {WORDS}(0u))"), nan],
        false if format.has_nan() => ["sign".to_owned(), format!("{nan} | sign")],
        false => ["sign".to_owned(), nan],
    };
    fill(
        include_str!("../../wgsl/encode_near.wgsl"),
        &[
            ("format", format.to_string()),
            ("of", of),
            ("special", format!("{special:#x}")),
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

/// The function `shift_{name}`: codes of a format as f32 with the exponents of the format, which
/// saves their decoding.
pub(super) fn shift(format: Format, name: &str) -> String {
    let widen = 23 - format.mantissa_bits();
    fill(
        include_str!("../../wgsl/shift.wgsl"),
        &[
            ("format", format.to_string()),
            ("below", (127 - format.bias()).to_string()),
            ("name", name.to_owned()),
            ("to_sign", (32 - format.bits()).to_string()),
            ("widen", widen.to_string()),
            ("magnitude", ((sign_bit(format) - 1) << widen).to_string()),
        ],
    )
}

/// Whether a cast rounds codes that are only shifted, not decoded: every subnormal of `from` is
/// below half a quantum of `to`.
pub(super) fn is_shifted(from: Format, to: Format, how: Conversion) -> bool {
    how.rounding == Rounding::NearestEven
        && is_float(to)
        && !to.is_f32()
        && from.specials() == Specials::Ieee
        && from.is_signed()
        && from.bias() < 127
        && min_exponent(from) < quantum_exponent(to)
}

/// The function `encode_{name}` of numbers that a format has, none of them subnormal in it.
pub(super) fn encode_exact(format: Format, over: u32, name: &str) -> String {
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
        include_str!("../../wgsl/encode_exact.wgsl"),
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
pub(super) fn encode_exact_f16(over: u32, name: &str) -> String {
    let sign = format!("((bits >> {WORDS}(16u)) & {WORDS}(0x8000u))");
    let nan = Format::F16.nan_code();
    let specials = format!(
        "code = select(code, {sign} | {WORDS}({over}u), magnitude >= {WORDS}(0x7f800000u));\n        \
         code = select(code, {sign} | {WORDS}({nan}u), magnitude > {WORDS}(0x7f800000u));"
    );
    fill(
        include_str!("../../wgsl/encode_exact_f16.wgsl"),
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
