// Elementary functions of four numbers. Tests for NaN and comparisons look at the bits: WGSL lets
// an implementation assume that there are no NaN and flush subnormals.
var<private> nan_bits: u32 = 0x7fc00000u;
var<private> infinity_bits: u32 = 0x7f800000u;
fn not_a_number() -> vec4<f32> {
    return vec4<f32>(bitcast<f32>(nan_bits));
}
fn infinity() -> vec4<f32> {
    return vec4<f32>(bitcast<f32>(infinity_bits));
}
fn magnitude(x: vec4<f32>) -> vec4<u32> {
    return bitcast<vec4<u32>>(x) & vec4<u32>(0x7fffffffu);
}
fn is_nan(x: vec4<f32>) -> vec4<bool> {
    return magnitude(x) > vec4<u32>(0x7f800000u);
}
fn is_zero(x: vec4<f32>) -> vec4<bool> {
    return magnitude(x) == vec4<u32>(0u);
}
// Integers in the order of the numbers; both zeros are 0.
fn ordered(x: vec4<f32>) -> vec4<i32> {
    let bits = bitcast<vec4<i32>>(x);
    return select(bits, -(bits & vec4<i32>(0x7fffffff)), bits < vec4<i32>(0));
}
fn truth(x: vec4<bool>) -> vec4<f32> {
    return select(vec4<f32>(0.0), vec4<f32>(1.0), x);
}
fn less(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    return truth((ordered(a) < ordered(b)) & !(is_nan(a) | is_nan(b)));
}
fn less_equal(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    return truth((ordered(a) <= ordered(b)) & !(is_nan(a) | is_nan(b)));
}
fn equal(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    return truth((ordered(a) == ordered(b)) & !(is_nan(a) | is_nan(b)));
}
fn minimum(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    let smaller = select(b, a, ordered(a) < ordered(b));
    return select(select(smaller, b, is_nan(b)), a, is_nan(a));
}
fn maximum(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    let larger = select(b, a, ordered(b) < ordered(a));
    return select(select(larger, b, is_nan(b)), a, is_nan(a));
}
fn negative(x: vec4<f32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(x) ^ vec4<u32>(0x80000000u));
}
fn absolute(x: vec4<f32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(magnitude(x));
}
// With the magnitude of x and the sign of y.
fn with_sign_of(x: vec4<f32>, y: vec4<f32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(magnitude(x) | (bitcast<vec4<u32>>(y) & vec4<u32>(0x80000000u)));
}
// a / b. WGSL promises nothing for divisors above 2^126, whose reciprocals may be flushed to 0.
fn quotient(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    let scale = select(vec4<f32>(1.0), vec4<f32>(0.0625), magnitude(b) > vec4<u32>(0x7e000000u));
    return (a * scale) / (b * scale);
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
// Natural logarithm: relative error 2e-7.
fn logarithm(x: vec4<f32>) -> vec4<f32> {
    // A subnormal is its bits, counted in 2^-149.
    let own = bitcast<vec4<u32>>(x);
    let small = own < vec4<u32>(0x800000u);
    let scaled = bitcast<vec4<u32>>(select(x, vec4<f32>(own), small));
    let bits = scaled - vec4<u32>(0x3f3504f3u);
    let n = vec4<f32>(bitcast<vec4<i32>>(bits) >> vec4<u32>(23u)) - select(vec4<f32>(0.0), vec4<f32>(149.0), small);
    let f = bitcast<vec4<f32>>((bits & vec4<u32>(0x7fffffu)) + vec4<u32>(0x3f3504f3u)) - 1.0;
    var tail = vec4<f32>(0.06915425);
    tail = tail * f - 0.11789835;
    tail = tail * f + 0.11872966;
    tail = tail * f - 0.12384343;
    tail = tail * f + 0.14218658;
    tail = tail * f - 0.16669251;
    tail = tail * f + 0.20002227;
    tail = tail * f - 0.24999987;
    tail = tail * f + 0.3333331;
    let square = f * f;
    let rest = square * f * tail - n * 2.12194440e-4;
    var value = n * 0.693359375 + ((rest - 0.5 * square) + f);
    value = select(value, x, own >= vec4<u32>(0x7f800000u));
    value = select(value, not_a_number(), own > vec4<u32>(0x80000000u));
    value = select(value, negative(infinity()), is_zero(x));
    return select(value, x, is_nan(x));
}
fn root(x: vec4<f32>) -> vec4<f32> {
    let bits = bitcast<vec4<u32>>(x);
    let value = select(sqrt(absolute(x)), x, is_zero(x) | is_nan(x) | (bits == vec4<u32>(0x7f800000u)));
    return select(value, not_a_number(), bits > vec4<u32>(0x80000000u));
}
fn reciprocal_root(x: vec4<f32>) -> vec4<f32> {
    let bits = bitcast<vec4<u32>>(x);
    var value = inverseSqrt(absolute(x));
    value = select(value, vec4<f32>(0.0), bits == vec4<u32>(0x7f800000u));
    value = select(value, with_sign_of(infinity(), x), is_zero(x));
    value = select(value, not_a_number(), bits > vec4<u32>(0x80000000u));
    return select(value, x, is_nan(x));
}
// Relative error 3e-7.
fn hyperbolic_tangent(x: vec4<f32>) -> vec4<f32> {
    let z = x * x;
    var odd = vec4<f32>(-0.005528633);
    odd = odd * z + 0.020483315;
    odd = odd * z - 0.053692967;
    odd = odd * z + 0.13330899;
    odd = odd * z - 0.33333263;
    let near = (x * z) * odd + x;
    let far = 1.0 - 2.0 / (exponential(2.0 * min(absolute(x), vec4<f32>(20.0))) + 1.0);
    let value = select(with_sign_of(far, x), near, magnitude(x) < vec4<u32>(0x3f266666u));
    return select(value, x, is_nan(x));
}
fn logistic(x: vec4<f32>) -> vec4<f32> {
    let e = exponential(negative(absolute(x)));
    let value = select(vec4<f32>(1.0), e, bitcast<vec4<i32>>(x) < vec4<i32>(0)) / (1.0 + e);
    return select(value, x, is_nan(x));
}
// x times a rational function of x^2; beyond 3.85 it is 1 in f32. Relative error 3e-7.
fn error_function(x: vec4<f32>) -> vec4<f32> {
    let bounded = with_sign_of(min(absolute(x), vec4<f32>(4.0)), x);
    let z = bounded * bounded;
    var over = vec4<f32>(2.1082708e-6);
    over = over * z + 0.0002856759;
    over = over * z + 0.0036739819;
    over = over * z + 0.052479867;
    over = over * z + 0.1878989;
    over = over * z + 1.1283791;
    var under = vec4<f32>(3.873188e-5);
    under = under * z + 0.0011455133;
    under = under * z + 0.014784997;
    under = under * z + 0.11312946;
    under = under * z + 0.49985394;
    under = under * z + 1.0;
    let value = select(bounded * over / under, with_sign_of(vec4<f32>(1.0), x), magnitude(x) > vec4<u32>(0x40766666u));
    return select(value, x, is_nan(x));
}
// Sine, or with `quarters` = 1 cosine: Taylor series on +-pi/4. The angle is reduced in three
// parts, exact for multiples below 2^13, so to about 12,000 radians.
fn wave(x: vec4<f32>, quarters: i32) -> vec4<f32> {
    let turns = round(x * 0.6366197723675814);
    var r = x - turns * 1.5703125;
    r = r - turns * 4.837512969970703125e-4;
    r = r - turns * 7.54978995489188216e-8;
    let z = r * r;
    var odd = vec4<f32>(2.7557319e-6);
    odd = odd * z - 1.9841270e-4;
    odd = odd * z + 8.3333333e-3;
    odd = odd * z - 0.16666667;
    let sine = (r * z) * odd + r;
    var even = vec4<f32>(-2.7557319e-7);
    even = even * z + 2.4801587e-5;
    even = even * z - 1.3888889e-3;
    even = even * z + 4.1666667e-2;
    let cosine = (z * z) * even + (1.0 - 0.5 * z);
    let n = vec4<i32>(clamp(turns, vec4<f32>(-1e9), vec4<f32>(1e9))) + vec4<i32>(quarters);
    var value = select(cosine, sine, (n & vec4<i32>(1)) == vec4<i32>(0));
    value = select(negative(value), value, (n & vec4<i32>(2)) == vec4<i32>(0));
    return select(value, not_a_number(), magnitude(x) >= vec4<u32>(0x7f800000u));
}
