//! WGSL: templates, which are files in `wgsl/`, and what is generated into them.

pub(crate) mod attention;
pub(crate) mod codec;
pub(crate) mod cross_entropy;
pub(crate) mod element;
pub(crate) mod expression;
pub(crate) mod index;
pub(crate) mod kernel;
pub(crate) mod matmul;
pub(crate) mod matrices;
mod prune;
pub(crate) mod reduce;
pub(crate) mod rows;
pub(crate) mod scatter;

/// Replaces each `{{name}}` of a template.
pub(crate) fn fill(template: &str, values: &[(&str, String)]) -> String {
    let mut text = template.to_owned();
    for (name, value) in values {
        text = text.replace(&format!("{{{{{name}}}}}"), value);
    }
    text
}

/// A constant as WGSL has it, in f32. Infinities and NaN are functions of `math.wgsl`, as WGSL has
/// no constants for them.
pub(crate) fn literal(value: f64) -> String {
    let value = value as f32;
    match value {
        _ if value.is_nan() => "not_a_number()".to_owned(),
        f32::INFINITY => "infinity()".to_owned(),
        f32::NEG_INFINITY => "negative(infinity())".to_owned(),
        _ => format!("vec4<f32>({})", scalar_literal(value.into())),
    }
}

/// A scalar constant. The shortest decimal form of the largest f32 is above it, which browsers
/// refuse.
pub(crate) fn scalar_literal(value: f64) -> String {
    let value = value as f32;
    match value.abs() == f32::MAX {
        true => format!("{}0x1.fffffep+127f", if value < 0.0 { "-" } else { "" }),
        false => format!("{value:?}f"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_numbers_of_f32() {
        assert_eq!(scalar_literal(0.1), "0.1f");
        assert_eq!(scalar_literal(f64::from(f32::MIN)), "-0x1.fffffep+127f");
        let text = format!("const x = {};", scalar_literal(f64::from(f32::MAX)));
        assert!(wgpu::naga::front::wgsl::parse_str(&text).is_ok());
        assert_eq!(literal(2.0), "vec4<f32>(2.0f)");
    }
}
