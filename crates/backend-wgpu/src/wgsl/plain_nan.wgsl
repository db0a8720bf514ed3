// f32 bits with NaN that have no payload.
fn plain_nan(bits: vec4<u32>) -> vec4<u32> {
    let nan = (bits & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
    return select(bits, (bits & vec4<u32>(0x80000000u)) | vec4<u32>(0x7fc00000u), nan);
}
