// Codes of {{format}} as f32 bits of numbers that are 2^{{below}} times too small: exponents as they
// are, with another bias. Subnormals become subnormals, which may be flushed.
fn shift_{{name}}(code: vec4<u32>) -> vec4<u32> {
    let sign = (code << vec4<u32>({{to_sign}}u)) & vec4<u32>(0x80000000u);
    return sign | ((code << vec4<u32>({{widen}}u)) & vec4<u32>({{magnitude}}u));
}
