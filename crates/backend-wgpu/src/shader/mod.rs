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
        _ => format!("vec4<f32>({value:?}f)"),
    }
}

/// A scalar constant.
pub(crate) fn scalar_literal(value: f64) -> String {
    format!("{:?}f", value as f32)
}
