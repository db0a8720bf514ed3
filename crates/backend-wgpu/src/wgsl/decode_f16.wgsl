// f32 bits of four codes of F16. A subnormal is a whole number of 2^-24; infinities and NaN are
// rare, so that they cost little more than the question.
fn decode_f16(code: vec4<u32>) -> vec4<u32> {
    let magnitude = code & vec4<u32>(0x7fffu);
    let value = vec4<f32>(unpack2x16float(code.x).x, unpack2x16float(code.y).x, unpack2x16float(code.z).x, unpack2x16float(code.w).x);
    let sign = (code & vec4<u32>(0x8000u)) << vec4<u32>(16u);
    let small = bitcast<vec4<u32>>(vec4<f32>(magnitude) * 5.9604644775390625e-8) | sign;
    var bits = select(bitcast<vec4<u32>>(value), small, magnitude < vec4<u32>(0x400u));
    if (any(magnitude >= vec4<u32>(0x7c00u))) {
        bits = select(bits, sign | vec4<u32>(0x7f800000u), magnitude == vec4<u32>(0x7c00u));
        bits = select(bits, sign | vec4<u32>(0x7fc00000u), magnitude > vec4<u32>(0x7c00u));
    }
    return bits;
}
