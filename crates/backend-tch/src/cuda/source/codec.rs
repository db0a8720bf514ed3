//! How elements are read and written in CUDA C.

use onesigma_backend::lowering::Rounded;
use onesigma_format::{Conversion, Format, Overflow, Rounding, Specials};
use onesigma_graph::DType;
use std::fmt::Write;

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

/// Words that hold `lanes` packed elements.
pub(crate) fn words(dtype: DType, lanes: usize) -> usize {
    if lanes == 8 { 2 * dtype.bytes() } else { 1 }
}

/// Statement that reads `lanes` elements at `index` into the words `into`.
pub(crate) fn load(dtype: DType, lanes: usize, from: &str, index: &str, into: &str) -> String {
    format!("load_words<{}, {lanes}>({from}, {index}, {into});", dtype.bytes())
}

/// Statement that writes `lanes` elements.
pub(crate) fn store(dtype: DType, lanes: usize, to: &str, index: &str, words: &str) -> String {
    format!("store_words<{}, {lanes}>({to}, {index}, {words});", dtype.bytes())
}

/// Statement that makes f32 values of packed elements.
pub(crate) fn unpack(dtype: DType, lanes: usize, words: &str, values: &str, exact: bool) -> String {
    let DType::Float(format) = dtype else {
        return format!("unpack_u32<{lanes}>({words}, {values});");
    };
    if format.is_f32() {
        return format!("unpack_f32<{lanes}>({words}, {values});");
    }
    match short(format) {
        Some(name) => {
            let mut text = format!("unpack_{name}<{lanes}>({words}, {values});");
            // The hardware's conversions lose the sign of a NaN.
            if exact && format != Format::BF16 {
                let bytes = format.bytes();
                let _ = write!(text, " sign_nan<{bytes}, {lanes}>({words}, {values});");
            }
            text
        }
        None => format!(
            "unpack_any<{}, {}, {lanes}>({words}, {values});",
            format.bytes(),
            arguments(format)
        ),
    }
}

/// Statement that rounds f32 values into packed elements; `random` holds the random bits of a
/// stochastic rule. With `exact` a NaN keeps its sign, as a cast must.
pub(crate) fn pack(
    dtype: DType,
    how: Conversion,
    lanes: usize,
    values: &str,
    words: &str,
    random: &str,
    exact: bool,
) -> String {
    // Ops have float results; `supports` denies others.
    let format = dtype.format().unwrap_or(Format::F32);
    if format.is_f32() {
        return format!("pack_f32<{lanes}>({values}, {words});");
    }
    let special = how.overflow == Overflow::Special;
    let fast = short(format).filter(|_| how.rounding == Rounding::NearestEven);
    match fast {
        Some(name) if format.bytes() == 2 => {
            return format!("pack_{name}<{lanes}, {special}, {exact}>({values}, {words});");
        }
        // FP8 conversions of the hardware saturate.
        Some(name) if !special => {
            return format!("pack_{name}<{lanes}, {exact}>({values}, {words});");
        }
        _ => {}
    }
    let rule = match how.rounding {
        Rounding::NearestEven => "NEAREST_EVEN",
        Rounding::NearestAway => "NEAREST_AWAY",
        Rounding::TowardZero => "TOWARD_ZERO",
        Rounding::Up => "UP",
        Rounding::Down => "DOWN",
        Rounding::Stochastic { .. } => "STOCHASTIC",
    };
    let bits = how.random_bits();
    let random = if bits == 0 { "(const u32*)0" } else { random };
    format!(
        "pack_any<{}, {}, {rule}, {special}, {bits}, {lanes}>({values}, {random}, {words});",
        format.bytes(),
        arguments(format)
    )
}

/// Statement that declares and draws the random bits `name` that a result is rounded with; empty
/// if there are none.
pub(crate) fn draw(result: &Rounded, lanes: usize, name: &str) -> String {
    match (result.random_bits(), result.stream) {
        (0, _) => String::new(),
        (bits, stream) => format!(
            "u32 {name}[{lanes}]; draws<{bits}, {lanes}>(noise_of(seed, step, {stream}u), i, {name});"
        ),
    }
}
