// f32 bits of four codes of {{format}}, in two's complement.
fn decode_{{name}}(code: vec4<u32>) -> vec4<u32> {
    let negative = (code & vec4<u32>({{sign}}u)) != vec4<u32>(0u);
    let magnitude = select(code, (vec4<u32>(0u) - code) & vec4<u32>({{mask}}u), negative);
    let lead = firstLeadingBit(magnitude | vec4<u32>(1u)) & vec4<u32>(31u);
    let shifted = (magnitude << (vec4<u32>(23u) - lead)) & vec4<u32>(0x7fffffu);
    let bits = ((lead + vec4<u32>({{quantum}}u)) << vec4<u32>(23u)) | shifted;
    let signed = bits | select(vec4<u32>(0u), vec4<u32>(0x80000000u), negative);
    return select(signed, vec4<u32>(0u), magnitude == vec4<u32>(0u));
}
