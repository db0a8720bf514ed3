//! Codes as f32.

use onesigma_format::{Format, Specials};

use super::{WORDS, min_exponent, quantum_exponent, sign_bit};
use crate::shader::{fill, scalar_literal};

/// The function `decode_{name}`. It has no branch: products decode what they fetch ahead, and a
/// branch would wait for it.
pub(super) fn decode(format: Format, name: &str) -> String {
    if format == Format::BF16 {
        return include_str!("../../wgsl/decode_bf16.wgsl").to_owned();
    }
    let p = format.mantissa_bits();
    let quantum = (quantum_exponent(format) + 127) as u32;
    match format.specials() {
        Specials::Scale => return include_str!("../../wgsl/decode_scale.wgsl").to_owned(),
        Specials::Integer => {
            return fill(
                include_str!("../../wgsl/decode_integer.wgsl"),
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
        Specials::Ieee => format!(
            "bits = select(bits, {WORDS}(0x7f800000u), magnitude > {WORDS}({max}u));\n    \
             bits = select(bits, {nan}, magnitude > {WORDS}({}u));\n    return sign | bits;",
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
        include_str!("../../wgsl/decode.wgsl"),
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
