// Standard normal numbers of random words: crate onesigma-format works them out in f64, so every
// step is done here in f64 too, in integer arithmetic, rounded to nearest-even. No infinities, NaN
// or subnormals come up. A number is (low word, high word) of its IEEE bits.
fn exponent_of(a: vec2<u32>) -> i32 {
    return i32((a.y >> 20u) & 0x7ffu) - 1023;
}
// The significand, in [2^52, 2^53).
fn significand_of(a: vec2<u32>) -> vec2<u32> {
    return vec2<u32>(a.x, (a.y & 0xfffffu) | 0x100000u);
}
fn is_nought(a: vec2<u32>) -> bool {
    return (a.x | (a.y & 0x7fffffffu)) == 0u;
}
fn flipped(a: vec2<u32>) -> vec2<u32> {
    return vec2<u32>(a.x, a.y ^ 0x80000000u);
}
fn add_wide(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let low = a.x + b.x;
    return vec2<u32>(low, a.y + b.y + select(0u, 1u, low < a.x));
}
fn take_wide(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    return vec2<u32>(a.x - b.x, a.y - b.y - select(0u, 1u, a.x < b.x));
}
fn below_wide(a: vec2<u32>, b: vec2<u32>) -> bool {
    return (a.y < b.y) || (a.y == b.y && a.x < b.x);
}
fn up_wide(a: vec2<u32>, by: u32) -> vec2<u32> {
    if (by == 0u) { return a; }
    if (by >= 32u) { return vec2<u32>(0u, a.x << (by - 32u)); }
    return vec2<u32>(a.x << by, (a.y << by) | (a.x >> (32u - by)));
}
// Down by any number of bits; what falls off leaves a trace in the last one.
fn down_wide(a: vec2<u32>, by: u32) -> vec2<u32> {
    if (by == 0u) { return a; }
    if (by >= 64u) { return vec2<u32>(select(0u, 1u, (a.x | a.y) != 0u), 0u); }
    if (by >= 32u) {
        let rest = by - 32u;
        let lost = a.x | select(0u, a.y << ((32u - rest) & 31u), rest != 0u);
        return vec2<u32>((a.y >> rest) | select(0u, 1u, lost != 0u), 0u);
    }
    let lost = a.x << (32u - by);
    return vec2<u32>((a.x >> by) | (a.y << (32u - by)) | select(0u, 1u, lost != 0u), a.y >> by);
}
// From a significand with 10 more bits, in [2^62, 2^63), the last of which tells of all below.
fn rounded_wide(sign: u32, exponent: i32, significand: vec2<u32>) -> vec2<u32> {
    let rest = significand.x & 0x3ffu;
    var whole = vec2<u32>((significand.x >> 10u) | (significand.y << 22u), significand.y >> 10u);
    if (rest > 512u || (rest == 512u && (whole.x & 1u) != 0u)) {
        whole = add_wide(whole, vec2<u32>(1u, 0u));
    }
    // A carry out of the significand raises the exponent by itself.
    return vec2<u32>(whole.x, (whole.y - 0x100000u + (u32(exponent + 1023) << 20u)) | sign);
}
fn plus(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    if (is_nought(a)) { return b; }
    if (is_nought(b)) { return a; }
    var large = a;
    var small = b;
    if (below_wide(vec2<u32>(a.x, a.y & 0x7fffffffu), vec2<u32>(b.x, b.y & 0x7fffffffu))) {
        large = b;
        small = a;
    }
    let sign = large.y & 0x80000000u;
    var exponent = exponent_of(large);
    let first = up_wide(significand_of(large), 10u);
    let second = down_wide(up_wide(significand_of(small), 10u), u32(exponent - exponent_of(small)));
    var sum: vec2<u32>;
    if (((large.y ^ small.y) & 0x80000000u) == 0u) {
        sum = add_wide(first, second);
    } else {
        sum = take_wide(first, second);
    }
    if ((sum.x | sum.y) == 0u) { return vec2<u32>(0u, 0u); }
    if (sum.y >= 0x80000000u) {
        sum = down_wide(sum, 1u);
        exponent += 1;
    }
    let lead = select(countLeadingZeros(sum.y), 32u + countLeadingZeros(sum.x), sum.y == 0u);
    return rounded_wide(sign, exponent - i32(lead) + 1, up_wide(sum, lead - 1u));
}
fn times(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    if (is_nought(a) || is_nought(b)) { return vec2<u32>(0u, 0u); }
    let m = significand_of(a);
    let n = significand_of(b);
    let p = wide_product(m.x, n.x);
    let q = wide_product(m.x, n.y);
    let r = wide_product(m.y, n.x);
    let s = wide_product(m.y, n.y);
    // Words of the product, 106 bits at most.
    let middle = add_wide(add_wide(q, r), vec2<u32>(p.y, 0u));
    let top = add_wide(s, vec2<u32>(middle.y, 0u));
    // Bits 42 and up: the top stands at bit 62 or 63.
    var all = vec2<u32>((middle.x >> 10u) | (top.x << 22u), (top.x >> 10u) | (top.y << 22u));
    all.x |= select(0u, 1u, (p.x | (middle.x & 0x3ffu)) != 0u);
    let sign = (a.y ^ b.y) & 0x80000000u;
    var exponent = exponent_of(a) + exponent_of(b);
    if (all.y >= 0x80000000u) {
        all = down_wide(all, 1u);
        exponent += 1;
    }
    return rounded_wide(sign, exponent, all);
}
fn over(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    if (is_nought(a)) { return a; }
    var rest = significand_of(a);
    let by = significand_of(b);
    var exponent = exponent_of(a) - exponent_of(b);
    if (below_wide(rest, by)) {
        rest = up_wide(rest, 1u);
        exponent -= 1;
    }
    var quotient = vec2<u32>(0u, 0u);
    for (var bit = 0u; bit < 63u; bit++) {
        quotient = up_wide(quotient, 1u);
        if (!below_wide(rest, by)) {
            rest = take_wide(rest, by);
            quotient.x |= 1u;
        }
        rest = up_wide(rest, 1u);
    }
    quotient.x |= select(0u, 1u, (rest.x | rest.y) != 0u);
    return rounded_wide((a.y ^ b.y) & 0x80000000u, exponent, quotient);
}
// An integer times a power of two.
fn scaled_integer(value: u32, exponent: i32) -> vec2<u32> {
    if (value == 0u) { return vec2<u32>(0u, 0u); }
    let lead = countLeadingZeros(value);
    let significand = up_wide(vec2<u32>(value, 0u), 21u + lead);
    return vec2<u32>(significand.x, significand.y - 0x100000u + (u32(exponent + 31 - i32(lead) + 1023) << 20u));
}
// Numerators and denominators of AS 241 (Wichura, 1988), eight coefficients each, highest first:
// centre, near tail, far tail.
var<private> coefficients: array<vec2<u32>, 48> = array<vec2<u32>, 48>(
    vec2<u32>(0x6f7d925eu, 0x40a39a29u), vec2<u32>(0x6b2e45e4u, 0x40e052d2u),
    vec2<u32>(0x55b78f20u, 0x40f06c1cu), vec2<u32>(0x869b752au, 0x40e66c3eu),
    vec2<u32>(0xcd4ee71du, 0x40cad1d8u), vec2<u32>(0x2213c0ccu, 0x409ece5du),
    vec2<u32>(0x8b1a436eu, 0x4060a488u), vec2<u32>(0x1e9eef75u, 0x400b18d9u),
    vec2<u32>(0xca984b69u, 0x40b46a7eu), vec2<u32>(0x7cb1ae76u, 0x40dc0e45u),
    vec2<u32>(0xaa64f4beu, 0x40e3317cu), vec2<u32>(0xd5d65266u, 0x40d4b772u),
    vec2<u32>(0x2e75c89fu, 0x40b51232u), vec2<u32>(0xfdc8b3f7u, 0x4085797eu),
    vec2<u32>(0x386e1ab5u, 0x4045281bu), vec2<u32>(0x00000000u, 0x3ff00000u),
    vec2<u32>(0xc0b7ace9u, 0x3f49615au), vec2<u32>(0x6c45ec67u, 0x3f9744ebu),
    vec2<u32>(0xb9b85c37u, 0x3fcef2abu), vec2<u32>(0x085375b2u, 0x3ff453ccu),
    vec2<u32>(0x1a3d02c4u, 0x400d2ecbu), vec2<u32>(0x1462256au, 0x401713f7u),
    vec2<u32>(0x48cab19bu, 0x40128577u), vec2<u32>(0xfde9526au, 0x3ff6c665u),
    vec2<u32>(0x686439e4u, 0x3e120d3fu), vec2<u32>(0xbfdf2728u, 0x3f41f18cu),
    vec2<u32>(0x7eab17bfu, 0x3f8f207au), vec2<u32>(0x3394f040u, 0x3fc2f512u),
    vec2<u32>(0xf23385c9u, 0x3fe61292u), vec2<u32>(0xe6526633u, 0x3ffad278u),
    vec2<u32>(0xbb46a449u, 0x40006cefu), vec2<u32>(0x00000000u, 0x3ff00000u),
    vec2<u32>(0xd693bf93u, 0x3e8afb74u), vec2<u32>(0xcc59e02au, 0x3efc6ec6u),
    vec2<u32>(0x08425345u, 0x3f545c19u), vec2<u32>(0x193b4ee7u, 0x3f9b2b41u),
    vec2<u32>(0x315255cfu, 0x3fd2fad9u), vec2<u32>(0x461fa445u, 0x3ffc8ea6u),
    vec2<u32>(0x6e875003u, 0x4015daeau), vec2<u32>(0xc13ee526u, 0x401aa1b1u),
    vec2<u32>(0xf1f8c190u, 0x3ce269bfu), vec2<u32>(0xf740b9e0u, 0x3e831446u),
    vec2<u32>(0x496374bfu, 0x3ef35c2cu), vec2<u32>(0x979dc5d7u, 0x3f49c8bcu),
    vec2<u32>(0x3215462au, 0x3f8e76f9u), vec2<u32>(0x183443fbu, 0x3fc186ebu),
    vec2<u32>(0x4fc7d77fu, 0x3fe331d3u), vec2<u32>(0x00000000u, 0x3ff00000u),
);
// 1/23, 1/21, ... 1/1.
var<private> odd_shares: array<vec2<u32>, 12> = array<vec2<u32>, 12>(
    vec2<u32>(0x590b2164u, 0x3fa642c8u), vec2<u32>(0x18618618u, 0x3fa86186u),
    vec2<u32>(0xbca1af28u, 0x3faaf286u), vec2<u32>(0x1e1e1e1eu, 0x3fae1e1eu),
    vec2<u32>(0x11111111u, 0x3fb11111u), vec2<u32>(0x13b13b14u, 0x3fb3b13bu),
    vec2<u32>(0x745d1746u, 0x3fb745d1u), vec2<u32>(0x1c71c71cu, 0x3fbc71c7u),
    vec2<u32>(0x92492492u, 0x3fc24924u), vec2<u32>(0x9999999au, 0x3fc99999u),
    vec2<u32>(0x55555555u, 0x3fd55555u), vec2<u32>(0x00000000u, 0x3ff00000u),
);
fn polynomial(first: u32, x: vec2<u32>) -> vec2<u32> {
    var sum = coefficients[first];
    for (var n = 1u; n < 8u; n++) {
        sum = plus(times(sum, x), coefficients[first + n]);
    }
    return sum;
}
// ln(2^e m) = e ln 2 + 2 artanh((m - 1) / (m + 1)).
fn logarithm_wide(x: vec2<u32>) -> vec2<u32> {
    let one = vec2<u32>(0u, 0x3ff00000u);
    var exponent = exponent_of(x);
    var mantissa = vec2<u32>(x.x, (x.y & 0xfffffu) | 0x3ff00000u);
    // Above the square root of 2.
    if (below_wide(vec2<u32>(0x667f3bcdu, 0x3ff6a09eu), mantissa)) {
        mantissa.y -= 0x100000u;
        exponent += 1;
    }
    let s = over(plus(mantissa, flipped(one)), plus(mantissa, one));
    let square = times(s, s);
    var series = vec2<u32>(0u, 0u);
    for (var n = 0u; n < 12u; n++) {
        series = plus(times(series, square), odd_shares[n]);
    }
    var whole = times(scaled_integer(u32(abs(exponent)), 0), vec2<u32>(0xfefa39efu, 0x3fe62e42u));
    if (exponent < 0) { whole = flipped(whole); }
    let two_s = times(vec2<u32>(0u, 0x40000000u), s);
    return plus(whole, times(two_s, series));
}
fn root_wide(x: vec2<u32>) -> vec2<u32> {
    var value = vec2<u32>((x.x >> 1u) | (x.y << 31u), (x.y >> 1u) + (1023u << 19u));
    for (var step = 0u; step < 5u; step++) {
        value = times(vec2<u32>(0u, 0x3fe00000u), plus(value, over(x, value)));
    }
    return value;
}
// The f32 bits of the normal number of a word.
fn normal(word: u32) -> u32 {
    // q = (word + 1/2) / 2^32 - 1/2 = (2 word + 1 - 2^32) / 2^33, exact.
    let upper = word >= 0x80000000u;
    let sign = select(0x80000000u, 0u, upper);
    let odd = 2u * word + 1u;
    let count = select(0u - odd, odd, upper);
    let q = scaled_integer(count, -33);
    var x: vec2<u32>;
    var first: u32;
    var factor = vec2<u32>(0u, 0x3ff00000u);
    if (count <= 3650722201u) {
        // Up to 0.425: q times a function of 0.180625 - q^2.
        x = plus(vec2<u32>(0x51eb851fu, 0x3fc71eb8u), flipped(times(q, q)));
        first = 0u;
        factor = q;
    } else {
        // 1/2 - |q|, exact.
        let r = root_wide(flipped(logarithm_wide(scaled_integer(0u - count, -33))));
        let is_far = below_wide(vec2<u32>(0u, 0x40140000u), r);
        let middle = select(vec2<u32>(0x9999999au, 0x3ff99999u), vec2<u32>(0u, 0x40140000u), is_far);
        x = plus(r, flipped(middle));
        first = select(16u, 32u, is_far);
    }
    x = times(factor, over(polynomial(first, x), polynomial(first + 8u, x)));
    // To f32: 29 bits fewer.
    let m = significand_of(x);
    let rest = m.x & 0x1fffffffu;
    var whole = (m.x >> 29u) | (m.y << 3u);
    if (rest > 0x10000000u || (rest == 0x10000000u && (whole & 1u) != 0u)) { whole += 1u; }
    return (whole - 0x800000u + (u32(exponent_of(x) + 127) << 23u)) | sign;
}
fn normal_quad(words: vec4<u32>) -> vec4<u32> {
    var result: vec4<u32>;
    for (var lane = 0u; lane < 4u; lane++) {
        result[lane] = normal(words[lane]);
    }
    return result;
}
