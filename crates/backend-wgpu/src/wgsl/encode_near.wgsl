// Codes of {{format}}, rounded to nearest-even.
fn encode_{{name}}(bits: vec4<u32>) -> vec4<u32> {
    let magnitude = bits & vec4<u32>(0x7fffffffu);
    let odd = (magnitude >> vec4<u32>({{narrow}}u)) & vec4<u32>(1u);
    let normal = ((magnitude + vec4<u32>({{below_half}}u) + odd) >> vec4<u32>({{narrow}}u)) - vec4<u32>({{rebias}}u);
    // Below the smallest normal number: counted in quanta, a product by a power of two. An f32
    // subnormal, which may be flushed, is far below half a quantum.
    let quanta = min(bitcast<vec4<f32>>(magnitude), vec4<f32>({{min_normal}})) * {{per_quantum}};
    let small = vec4<u32>(round(quanta));
    let rounded = select(normal, small, magnitude < vec4<u32>({{min_normal_bits}}u));
    var code = {{overflow}};
    {{specials}}
}
