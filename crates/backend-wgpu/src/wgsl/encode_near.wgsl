// Codes of {{format}}, rounded to nearest-even; f32 subnormals are far below half its quantum.
fn encode_{{name}}(bits: vec4<u32>) -> vec4<u32> {
    let magnitude = bits & vec4<u32>(0x7fffffffu);
    let exponent = magnitude >> vec4<u32>(23u);
    let significand = (magnitude & vec4<u32>(0x7fffffu)) | vec4<u32>(0x800000u);
    let top = max(exponent, vec4<u32>({{minimum}}u));
    let dropped = min(top - exponent + vec4<u32>({{narrow}}u), vec4<u32>(26u));
    let odd = (significand >> dropped) & vec4<u32>(1u);
    let half = (vec4<u32>(1u) << (dropped - vec4<u32>(1u))) - vec4<u32>(1u);
    let rounded = ((top - vec4<u32>({{minimum}}u)) << vec4<u32>({{p}}u)) + ((significand + half + odd) >> dropped);
    var code = {{overflow}};
    {{specials}}
}
