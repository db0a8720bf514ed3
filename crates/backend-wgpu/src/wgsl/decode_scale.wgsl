// f32 bits of four codes of E8M0: an f32 exponent, of which 0 is the subnormal 2^-127.
fn decode_e8m0(code: vec4<u32>) -> vec4<u32> {
    let bits = select(code << vec4<u32>(23u), vec4<u32>(0x400000u), code == vec4<u32>(0u));
    return select(bits, vec4<u32>(0x7fc00000u), code == vec4<u32>(255u));
}
