// f32 bits of four codes of BF16: its high half. A NaN keeps its payload.
fn decode_bf16(code: vec4<u32>) -> vec4<u32> {
    return code << vec4<u32>(16u);
}
