// Codes of {{format}} of numbers that it has, none of them subnormal in it.
fn encode_{{name}}(bits: vec4<u32>) -> vec4<u32> {
    let magnitude = bits & vec4<u32>(0x7fffffffu);
    let rounded = select((magnitude >> vec4<u32>({{narrow}}u)) - vec4<u32>({{rebias}}u), vec4<u32>(0u), magnitude == vec4<u32>(0u));
    var code = {{overflow}};
    {{specials}}
}
