//! How elements are read and written in CUDA C.

use onesigma_format::{Conversion, Format, Overflow, Rounding, Specials};
use onesigma_graph::DType;

/// Random bits that a conversion draws for an element; 0 for deterministic ones.
pub(crate) fn random_bits(how: Conversion) -> u32 {
    match how.rounding {
        Rounding::Stochastic { bits } => bits.into(),
        _ => 0,
    }
}

/// Template arguments of a format.
fn arguments(format: Format) -> String {
    let kind = match format.specials() {
        Specials::Ieee => "IEEE",
        Specials::FiniteNan => "FINITE_NAN",
        Specials::Fnuz => "FNUZ",
        Specials::Finite => "FINITE",
        Specials::Scale => "SCALE",
        Specials::Integer => "INTEGER",
    };
    format!("{}, {}, {}, {kind}", format.exponent_bits(), format.mantissa_bits(), format.bias())
}

fn short(format: Format) -> Option<&'static str> {
    [(Format::F16, "f16"), (Format::BF16, "bf16"), (Format::E4M3, "e4m3"), (Format::E5M2, "e5m2")]
        .into_iter()
        .find_map(|(known, name)| (known == format).then_some(name))
}

/// The f32 value of the code `code`. With `exact` a NaN keeps its sign, as a cast must.
pub(crate) fn decode(dtype: DType, code: &str, exact: bool) -> String {
    let DType::Float(format) = dtype else { return format!("(float){code}") };
    if format.is_f32() {
        return format!("__uint_as_float({code})");
    }
    match short(format) {
        Some(name) if exact => format!("decode_{name}_exact({code})"),
        Some(name) => format!("decode_{name}({code})"),
        None => format!("decode_any<{}>({code})", arguments(format)),
    }
}

/// The code of the f32 `value`; `random` holds the random bits of a stochastic rule.
pub(crate) fn encode(dtype: DType, how: Conversion, value: &str, random: &str) -> String {
    let DType::Float(format) = dtype else { return format!("(u32){value}") };
    if format.is_f32() {
        return format!("__float_as_uint({value})");
    }
    let special = how.overflow == Overflow::Special;
    let fast = short(format).filter(|_| how.rounding == Rounding::NearestEven);
    // FP8 conversions of the hardware saturate.
    let fast = fast.filter(|_| !special || format.bits() == 16);
    if let Some(name) = fast {
        let overflow = if special { "special" } else { "saturate" };
        return format!("encode_{name}_{overflow}({value})");
    }
    let rule = match how.rounding {
        Rounding::NearestEven => "NEAREST_EVEN",
        Rounding::NearestAway => "NEAREST_AWAY",
        Rounding::TowardZero => "TOWARD_ZERO",
        Rounding::Up => "UP",
        Rounding::Down => "DOWN",
        Rounding::Stochastic { .. } => "STOCHASTIC",
    };
    let bits = random_bits(how);
    let random = if bits == 0 { "0u" } else { random };
    format!("encode_any<{}, {rule}, {special}, {bits}>({value}, {random})", arguments(format))
}

/// Statement that reads `n` codes at `index` into the array `into`.
pub(crate) fn load(dtype: DType, n: usize, from: &str, index: &str, into: &str) -> String {
    format!("load_codes{}<{n}>({from}, {index}, {into});", dtype.bytes())
}

/// Statement that writes `n` codes.
pub(crate) fn store(dtype: DType, n: usize, to: &str, index: &str, codes: &str) -> String {
    format!("store_codes{}<{n}>({to}, {index}, {codes});", dtype.bytes())
}
