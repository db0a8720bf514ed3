// Codes of {{format}}, four f32 given by their bits, {{rule}}: as the reference codec.
fn encode_{{name}}(bits: vec4<u32>{{random}}) -> vec4<u32> {
    let negative = (bits >> vec4<u32>(31u)) != vec4<u32>(0u);
    let magnitude = bits & vec4<u32>(0x7fffffffu);
    // value = significand 2^(exponent - 150), with the significand in [2^23, 2^24).
    let subnormal = magnitude < vec4<u32>(0x800000u);
    let up = (countLeadingZeros(magnitude) - vec4<u32>(8u)) & vec4<u32>(31u);
    let significand = select((magnitude & vec4<u32>(0x7fffffu)) | vec4<u32>(0x800000u), magnitude << up, subnormal);
    let exponent = select(vec4<i32>(magnitude >> vec4<u32>(23u)), vec4<i32>(1) - vec4<i32>(up), subnormal);
    let top = max(exponent, vec4<i32>({{minimum}}));
    let base = vec4<u32>(top - vec4<i32>({{minimum}})) << vec4<u32>({{p}}u);
    // Bits below the quantum; 31 of them act as any larger number does.
    let all = vec4<u32>(top - exponent) + vec4<u32>({{narrow}}u);
    let dropped = min(all, vec4<u32>(31u));
    let whole = significand >> dropped;
    let fraction = significand & ((vec4<u32>(1u) << dropped) - vec4<u32>(1u));
    let half = vec4<u32>(1u) << (dropped - vec4<u32>(1u));
    let up_one = {{round}};
    let rounded = base + whole{{hidden}} + select(vec4<u32>(0u), vec4<u32>(1u), up_one);
    var code = select(rounded, {{overflow}}, rounded > vec4<u32>({{max}}u));
    {{specials}}
}
