// Codes of {{format}}, rounded to nearest-even.
fn encode_{{name}}(bits: vec4<u32>) -> vec4<u32> {
    let magnitude = bits & vec4<u32>(0x7fffffffu);
    let value = bitcast<vec4<f32>>(magnitude);
    // Half a unit less one, with the difference of the biases taken off; what wraps round is small.
    let odd = (magnitude >> vec4<u32>({{narrow}}u)) & vec4<u32>(1u);
    let normal = (magnitude + vec4<u32>({{below_half}}u) + odd) >> vec4<u32>({{narrow}}u);
    // Below the smallest normal number: counted in quanta, a product by a power of two. An f32
    // subnormal, which may be flushed, is far below half a quantum. Behind 2^23 the count stands in
    // the lowest bits.
    let quanta = round(value * {{per_quantum}}) + vec4<f32>(8388608.0);
    let small = bitcast<vec4<u32>>(quanta) & vec4<u32>(0x7fffffu);
    let rounded = select(normal, small, value < vec4<f32>({{min_normal}}));
    var code = {{overflow}};
    {{specials}}
}
