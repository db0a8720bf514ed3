// A quad is four neighbouring elements: 1, 2 or 4 words by the size of an element. A thread writes
// whole quads, so no two threads write one word.
fn codes_1(w: u32) -> vec4<u32> {
    return (vec4<u32>(w) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(0xffu);
}
fn codes_2(w: vec2<u32>) -> vec4<u32> {
    return vec4<u32>(w.x & 0xffffu, w.x >> 16u, w.y & 0xffffu, w.y >> 16u);
}
fn codes_4(w: vec4<u32>) -> vec4<u32> {
    return w;
}
fn pack_1(c: vec4<u32>) -> u32 {
    return c.x | (c.y << 8u) | (c.z << 16u) | (c.w << 24u);
}
fn pack_2(c: vec4<u32>) -> vec2<u32> {
    return vec2<u32>(c.x | (c.y << 16u), c.z | (c.w << 16u));
}
fn pack_4(c: vec4<u32>) -> vec4<u32> {
    return c;
}
