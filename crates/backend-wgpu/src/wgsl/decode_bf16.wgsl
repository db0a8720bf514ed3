// f32 bits of four codes of BF16: its high half, a NaN without payload.
fn decode_bf16(code: vec4<u32>) -> vec4<u32> {
    let bits = code << vec4<u32>(16u);
    let nan = (bits & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
    return select(bits, (bits & vec4<u32>(0x80000000u)) | vec4<u32>(0x7fc00000u), nan);
}
