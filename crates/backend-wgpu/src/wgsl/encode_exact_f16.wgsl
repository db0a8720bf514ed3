// Codes of F16 of numbers that it has, none of them subnormal in it: nothing is rounded. What
// becomes of NaN and infinities here is left to the implementation.
fn encode_{{name}}(bits: vec4<u32>) -> vec4<u32> {
    let value = bitcast<vec4<f32>>(bits);
    var code = codes_2(vec2<u32>(pack2x16float(value.xy), pack2x16float(value.zw)));
    let magnitude = bits & vec4<u32>(0x7fffffffu);
    if (any(magnitude >= vec4<u32>(0x7f800000u))) {
        {{specials}}
    }
    return code;
}
