// Codes of BF16, rounded to nearest-even: the high half after an integer addition.
fn encode_{{name}}(bits: vec4<u32>) -> vec4<u32> {
    let sign = (bits >> vec4<u32>(16u)) & vec4<u32>(0x8000u);
    let magnitude = bits & vec4<u32>(0x7fffffffu);
    let odd = (magnitude >> vec4<u32>(16u)) & vec4<u32>(1u);
    let rounded = (magnitude + vec4<u32>(0x7fffu) + odd) >> vec4<u32>(16u);
    var code = min(rounded, vec4<u32>({{largest}}u));
    code = select(code, vec4<u32>(0x7fc0u), magnitude > vec4<u32>(0x7f800000u));
    return code | sign;
}
