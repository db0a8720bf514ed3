// Codes of {{format}}, rounded to nearest-even{{of}}.
fn encode_{{name}}(bits: vec4<u32>) -> vec4<u32> {
    let exponent = bits & vec4<u32>(0x7f800000u);
    let top = max(exponent, vec4<u32>({{min_normal_bits}}u));
    // Counted in quanta of its exponent, by a product with a power of two, which is exact: an f32
    // subnormal, which may be flushed, is far below half a quantum. Behind 2^23 the count stands in
    // the lowest bits.
    let value = abs(bitcast<vec4<f32>>(bits));
    let quanta = round(value * bitcast<vec4<f32>>(vec4<u32>({{per_quantum}}u) - top)) + vec4<f32>(8388608.0);
    let rounded = bitcast<vec4<u32>>(quanta) + (top >> vec4<u32>({{narrow}}u)) - vec4<u32>({{none}}u);
    var code = min(rounded, vec4<u32>({{over}}u));
    let sign = (bits >> vec4<u32>({{to_sign}}u)) & vec4<u32>({{sign}}u);
    code = code | {{signed}};
    if (any(exponent == vec4<u32>({{special}}u))) {
        let magnitude = bits & vec4<u32>(0x7fffffffu);
        code = select(code, vec4<u32>({{over}}u) | sign, magnitude == vec4<u32>({{special}}u));
        code = select(code, {{nan}}, magnitude > vec4<u32>({{special}}u));
    }
    return code;
}
