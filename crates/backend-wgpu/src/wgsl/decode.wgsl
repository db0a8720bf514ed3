// f32 bits of four codes of {{format}}.
fn decode_{{name}}(code: vec4<u32>) -> vec4<u32> {
    let magnitude = code & vec4<u32>({{magnitude}}u);
    let sign = select(vec4<u32>(0u), vec4<u32>(0x80000000u), (code & vec4<u32>({{sign}}u)) != vec4<u32>(0u));
    let exponent = magnitude >> vec4<u32>({{p}}u);
    let mantissa = magnitude & vec4<u32>({{mantissa}}u);
    let normal = ((exponent + vec4<u32>({{rebias}}u)) << vec4<u32>(23u)) | (mantissa << vec4<u32>({{widen}}u));
    // A subnormal is its mantissa, counted in quanta: normalised by its leading bit.
    let lead = firstLeadingBit(mantissa | vec4<u32>(1u)) & vec4<u32>(31u);
    let shifted = (mantissa << (vec4<u32>(23u) - lead)) & vec4<u32>(0x7fffffu);
    let small = ((lead + vec4<u32>({{quantum}}u)) << vec4<u32>(23u)) | shifted;
    var bits = select(normal, select(small, vec4<u32>(0u), mantissa == vec4<u32>(0u)), exponent == vec4<u32>(0u));
    {{specials}}
}
