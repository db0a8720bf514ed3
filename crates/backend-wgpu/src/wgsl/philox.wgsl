// Philox 4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011), as crate onesigma-format lays it out.
fn wide_product(a: u32, b: u32) -> vec2<u32> {
    let low = (a & 0xffffu) * (b & 0xffffu);
    let mid1 = (a >> 16u) * (b & 0xffffu);
    let mid2 = (a & 0xffffu) * (b >> 16u);
    let carry = (low >> 16u) + (mid1 & 0xffffu) + (mid2 & 0xffffu);
    return vec2<u32>(a * b, (a >> 16u) * (b >> 16u) + (mid1 >> 16u) + (mid2 >> 16u) + (carry >> 16u));
}
fn philox(block: u32, tensor: u32, step: u32, seed: vec2<u32>) -> vec4<u32> {
    var c = vec4<u32>(block, 0u, tensor, step);
    var key = seed;
    for (var round = 0u; round < 10u; round++) {
        let first = wide_product(0xd2511f53u, c.x);
        let second = wide_product(0xcd9e8d57u, c.z);
        c = vec4<u32>(second.y ^ c.y ^ key.x, second.x, first.y ^ c.w ^ key.y, first.x);
        key += vec2<u32>(0x9e3779b9u, 0xbb67ae85u);
    }
    return c;
}
// The random bits of the elements of quad `q`.
fn draw_32(q: u32, tensor: u32, step: u32, seed: vec2<u32>) -> vec4<u32> {
    return philox(q, tensor, step, seed);
}
fn draw_16(q: u32, tensor: u32, step: u32, seed: vec2<u32>) -> vec4<u32> {
    let block = philox(q >> 1u, tensor, step, seed);
    return codes_2(select(block.xy, block.zw, (q & 1u) != 0u));
}
fn draw_8(q: u32, tensor: u32, step: u32, seed: vec2<u32>) -> vec4<u32> {
    let block = philox(q >> 2u, tensor, step, seed);
    return codes_1(block[q & 3u]);
}
