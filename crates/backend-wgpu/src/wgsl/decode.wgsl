// f32 bits of four codes of {{format}}.
fn decode_{{name}}(code: vec4<u32>) -> vec4<u32> {
    let magnitude = code & vec4<u32>({{magnitude}}u);
    let sign = (code << vec4<u32>({{to_sign}}u)) & vec4<u32>(0x80000000u);
    let normal = (magnitude << vec4<u32>({{widen}}u)) + vec4<u32>({{rebias}}u);
    // A subnormal: with the leading one that it does not have, less that. All three are normal in
    // f32 and the difference is exact, so nothing is rounded or flushed.
    let small = bitcast<vec4<u32>>(bitcast<vec4<f32>>(normal + vec4<u32>(0x800000u)) - vec4<f32>({{min_normal}}));
    var bits = select(normal, small, magnitude < vec4<u32>({{first_normal}}u));
    {{specials}}
}
