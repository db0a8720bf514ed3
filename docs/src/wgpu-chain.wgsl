@group(0) @binding(0) var<storage, read_write> x0: array<vec2<u32>>;
fn x0_load(q: u32) -> vec2<u32> { return x0[q]; }
fn x0_codes(q: u32) -> vec4<u32> { return codes_2(x0_load(q)); }
@group(0) @binding(1) var<storage, read_write> x1: array<vec4<u32>>;
fn x1_load(q: u32) -> vec4<u32> { return x1[q]; }
fn x1_codes(q: u32) -> vec4<u32> { return codes_4(x1_load(q)); }
@group(0) @binding(2) var<storage, read_write> x2: array<vec2<u32>>;
fn x2_load(q: u32) -> vec2<u32> { return x2[q]; }
fn x2_codes(q: u32) -> vec4<u32> { return codes_2(x2_load(q)); }
@group(0) @binding(3) var<storage, read_write> x3: array<u32>;
fn x3_store(q: u32, c: vec4<u32>) { x3[q] = pack_1(c); }
fn codes_2(w: vec2<u32>) -> vec4<u32> {
    return vec4<u32>(w.x & 0xffffu, w.x >> 16u, w.y & 0xffffu, w.y >> 16u);
}
fn codes_4(w: vec4<u32>) -> vec4<u32> {
    return w;
}
fn pack_1(c: vec4<u32>) -> u32 {
    return c.x | (c.y << 8u) | (c.z << 16u) | (c.w << 24u);
}
fn magnitude(x: vec4<f32>) -> vec4<u32> {
    return bitcast<vec4<u32>>(x) & vec4<u32>(0x7fffffffu);
}
fn is_nan(x: vec4<f32>) -> vec4<bool> {
    return magnitude(x) > vec4<u32>(0x7f800000u);
}
fn negative(x: vec4<f32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(x) ^ vec4<u32>(0x80000000u));
}
fn absolute(x: vec4<f32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(magnitude(x));
}
// 2^n for -126 <= n <= 127.
fn power_of_two(n: vec4<i32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(n + vec4<i32>(127)) << vec4<u32>(23u));
}
// The integer of a whole number of at most 2^21: behind 2^23 + 2^22 it stands in the lowest bits.
fn whole_number(n: vec4<f32>) -> vec4<i32> {
    return bitcast<vec4<i32>>(n + vec4<f32>(12582912.0)) - vec4<i32>(0x4b400000);
}
// e^x: relative error 1.5e-7.
fn exponential(x: vec4<f32>) -> vec4<f32> {
    let bounded = clamp(x, vec4<f32>(-104.0), vec4<f32>(89.0));
    let n = round(bounded * 1.4426950408889634);
    // ln 2 in two parts; n times the first is exact.
    let r = (bounded - n * 0.693359375) + n * 2.12194440e-4;
    var tail = vec4<f32>(0.00019918525);
    tail = tail * r + 0.0013946177;
    tail = tail * r + 0.008333264;
    tail = tail * r + 0.04166627;
    tail = tail * r + 0.16666667;
    tail = tail * r + 0.5;
    let value = (r * r) * tail + r + 1.0;
    // Two factors, so that the second alone leaves the range of f32.
    let whole = whole_number(n);
    let first = whole >> vec4<u32>(1u);
    let result = value * power_of_two(first) * power_of_two(whole - first);
    return select(result, x, is_nan(x));
}
fn logistic(x: vec4<f32>) -> vec4<f32> {
    let e = exponential(negative(absolute(x)));
    let value = select(vec4<f32>(1.0), e, bitcast<vec4<i32>>(x) < vec4<i32>(0)) / (1.0 + e);
    return select(value, x, is_nan(x));
}
// f32 bits of four codes of BF16: its high half. A NaN keeps its payload.
fn decode_bf16(code: vec4<u32>) -> vec4<u32> {
    return code << vec4<u32>(16u);
}
// f32 bits of four codes of E4M3.
fn decode_e4m3(code: vec4<u32>) -> vec4<u32> {
    let magnitude = code & vec4<u32>(127u);
    let sign = (code << vec4<u32>(24u)) & vec4<u32>(0x80000000u);
    let normal = (magnitude << vec4<u32>(20u)) + vec4<u32>(1006632960u);
    // A subnormal: with the leading one that it does not have, less that. All three are normal in
    // f32 and the difference is exact, so nothing is rounded or flushed.
    let small = bitcast<vec4<u32>>(bitcast<vec4<f32>>(normal + vec4<u32>(0x800000u)) - vec4<f32>(0.015625f));
    var bits = select(normal, small, magnitude < vec4<u32>(8u));
    bits = select(bits, vec4<u32>(0x7fc00000u), magnitude > vec4<u32>(126u));
    return sign | bits;
}
// Codes of BF16, rounded to nearest-even: the high half after an integer addition.
fn encode_bf16_even(bits: vec4<u32>) -> vec4<u32> {
    let sign = (bits >> vec4<u32>(16u)) & vec4<u32>(0x8000u);
    let magnitude = bits & vec4<u32>(0x7fffffffu);
    let odd = (magnitude >> vec4<u32>(16u)) & vec4<u32>(1u);
    let rounded = (magnitude + vec4<u32>(0x7fffu) + odd) >> vec4<u32>(16u);
    var code = min(rounded, vec4<u32>(32639u));
    code = select(code, vec4<u32>(0x7fc0u), magnitude > vec4<u32>(0x7f800000u));
    return code | sign;
}
// Codes of E4M3, rounded to nearest-even.
fn encode_e4m3_even(bits: vec4<u32>) -> vec4<u32> {
    let exponent = bits & vec4<u32>(0x7f800000u);
    let top = max(exponent, vec4<u32>(1015021568u));
    // Counted in quanta of its exponent, by a product with a power of two, which is exact: an f32
    // subnormal, which may be flushed, is far below half a quantum. Behind 2^23 the count stands in
    // the lowest bits.
    let value = abs(bitcast<vec4<f32>>(bits));
    let quanta = round(value * bitcast<vec4<f32>>(vec4<u32>(2155872256u) - top)) + vec4<f32>(8388608.0);
    let rounded = bitcast<vec4<u32>>(quanta) + (top >> vec4<u32>(20u)) - vec4<u32>(1258292168u);
    var code = min(rounded, vec4<u32>(126u));
    let sign = (bits >> vec4<u32>(24u)) & vec4<u32>(128u);
    code = code | sign;
    if (any(exponent == vec4<u32>(0x7f800000u))) {
        let magnitude = bits & vec4<u32>(0x7fffffffu);
        code = select(code, vec4<u32>(126u) | sign, magnitude == vec4<u32>(0x7f800000u));
        code = select(code, vec4<u32>(127u) | sign, magnitude > vec4<u32>(0x7f800000u));
    }
    return code;
}
@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let quad = id.x + id.y * groups.x * 256u;
    if (quad >= 2048u) { return; }
    let v0_codes = x0_codes(quad);
    let v0_bits = decode_bf16(v0_codes);
    let v0 = bitcast<vec4<f32>>(v0_bits);
    let v1_codes = x1_codes((((4u * quad) % 128u)) / 4u);
    let v1_bits = v1_codes;
    let v1 = bitcast<vec4<f32>>(v1_bits);
    let v2_codes = x2_codes(quad);
    let v2_bits = decode_bf16(v2_codes);
    let v2 = bitcast<vec4<f32>>(v2_bits);
    let t0_2 = v0 + v1;
    let r0_scaled = bitcast<vec4<u32>>(t0_2);
    let r0_codes = encode_bf16_even(r0_scaled);
    let r0_bits = decode_bf16(r0_codes);
    let r0 = bitcast<vec4<f32>>(r0_bits);
    let t1_2 = logistic(r0);
    let t1_3 = v2 * t1_2;
    let r1_scaled = bitcast<vec4<u32>>((t1_3) * 1.75f);
    let r1_codes = r1_scaled;
    let r1_bits = r1_codes;
    let r1 = bitcast<vec4<f32>>(r1_bits);
    let r2_codes = encode_e4m3_even(r1_bits);
    let r2_bits = decode_e4m3(r2_codes);
    let r2 = bitcast<vec4<f32>>(r2_bits);
    x3_store(quad, r2_codes);
}
