// AdamW (Loshchilov and Hutter, arXiv 1711.05101) for four elements of a parameter. A factor of
// exactly 0 skips the step: everything stays as it is.
fn adam_first(m: vec4<f32>, gradient: vec4<f32>, factor: vec4<f32>, beta: f32, rest: f32) -> vec4<f32> {
    return select(m * beta + gradient * factor * rest, m, is_zero(factor));
}
fn adam_second(v: vec4<f32>, gradient: vec4<f32>, factor: vec4<f32>, beta: f32, rest: f32) -> vec4<f32> {
    let scaled = gradient * factor;
    return select(v * beta + scaled * scaled * rest, v, is_zero(factor));
}
// `shrink` is what the decay leaves of the weight; the corrections are 1 - beta^t of both moments,
// which are new and not yet rounded.
fn adam_weight(w: vec4<f32>, m: vec4<f32>, v: vec4<f32>, factor: vec4<f32>, rate: vec4<f32>, shrink: vec4<f32>, first: vec4<f32>, second: vec4<f32>, eps: f32) -> vec4<f32> {
    let update = quotient(quotient(m, first), root(quotient(v, second)) + eps);
    return select(w * shrink - rate * update, w, is_zero(factor));
}
