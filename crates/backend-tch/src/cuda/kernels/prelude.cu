// What every generated kernel uses: codecs, random bits, functions, reductions.
//
// Kernels are compiled at run time by NVRTC, without headers. Formats are template arguments;
// those that the hardware converts have paths of their own below the general codec.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEVICE __device__ __forceinline__

DEVICE float not_a_number(u32 sign) { return __uint_as_float(0x7fc00000u | sign); }

// ---------------------------------------------------------------------------- formats

enum { IEEE, FINITE_NAN, FNUZ, FINITE, SCALE, INTEGER };
enum { NEAREST_EVEN, NEAREST_AWAY, TOWARD_ZERO, UP, DOWN, STOCHASTIC };

// What follows from a format's parameters; the names are those of the crate `onesigma-format`.
template <int E, int M, int B, int KIND>
struct Format {
  static const u32 BITS = (KIND == SCALE ? 0 : 1) + E + M;
  static const u32 SIGN = KIND == SCALE ? 0 : 1u << (BITS - 1);
  static const u32 ONES = (1u << (E + M)) - 1;
  static const u32 MAX = KIND == IEEE                             ? (((1u << E) - 1) << M) - 1
                         : KIND == FINITE_NAN || KIND == SCALE ? ONES - 1
                                                                  : ONES;
  static const bool HAS_NAN = KIND != FINITE && KIND != INTEGER;
  static const u32 NAN_CODE = KIND == IEEE ? ((MAX + 1) | 1u << (M - 1)) : HAS_NAN ? MAX + 1 : MAX;
  static const u32 SPECIAL = HAS_NAN ? MAX + 1 : MAX;
  static const int MIN_EXPONENT = KIND == INTEGER ? M - B : KIND == SCALE ? -B : 1 - B;
  static const int QUANTUM = MIN_EXPONENT - M;
};

DEVICE double power_of_two(int exponent) {
  return __longlong_as_double((long long)(exponent + 1023) << 52);
}

// The value of a code, exact.
template <int E, int M, int B, int KIND>
DEVICE float decode_any(u32 code) {
  typedef Format<E, M, B, KIND> F;
  code &= (u32)((1ull << F::BITS) - 1);
  const u32 sign = code & F::SIGN;
  const u32 magnitude = code & ~F::SIGN;
  if (KIND == INTEGER) {
    const int value = (int)code - (sign ? 1 << F::BITS : 0);
    return (float)(value * power_of_two(-B));
  }
  if (KIND == FNUZ && code == F::SIGN) return not_a_number(0);
  if (magnitude > F::MAX) {
    const bool infinite = KIND == IEEE && magnitude == F::MAX + 1;
    const u32 bits = infinite ? 0x7f800000u : 0x7fc00000u;
    return __uint_as_float(bits | (sign ? 0x80000000u : 0));
  }
  double value;
  if (KIND == SCALE) {
    value = power_of_two((int)code - B);
  } else {
    const int exponent = (int)(magnitude >> M);
    const u32 mantissa = magnitude & ((1u << M) - 1);
    value = exponent == 0 ? mantissa * power_of_two(F::QUANTUM)
                          : (mantissa | 1u << M) * power_of_two(exponent - B - M);
  }
  return sign ? -(float)value : (float)value;
}

template <int KIND, u32 SIGN, u32 BITS>
DEVICE u32 with_sign(u32 code, bool negative) {
  if (!negative) return code;
  if (KIND == INTEGER) return (0 - code) & (u32)((1ull << BITS) - 1);
  if (KIND == FNUZ && code == 0) return 0;
  return code | SIGN;
}

// The code of a value. `random` gives its low bits to stochastic rounding.
template <int E, int M, int B, int KIND, int RULE, bool SPECIAL, int RANDOM_BITS>
DEVICE u32 encode_any(float value, u32 random) {
  typedef Format<E, M, B, KIND> F;
  const u32 bits = __float_as_uint(value);
  const bool negative = bits >> 31;
  const u32 magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    const bool is_unsigned = !F::HAS_NAN || KIND == FNUZ;
    return is_unsigned || !negative ? F::NAN_CODE : F::NAN_CODE | F::SIGN;
  }
  if (KIND == SCALE && (negative || magnitude == 0)) {
    return negative && magnitude != 0 && SPECIAL ? F::NAN_CODE : 0;
  }
  if (magnitude == 0x7f800000u) {
    return with_sign<KIND, F::SIGN, F::BITS>(SPECIAL ? F::SPECIAL : F::MAX, negative);
  }
  if (magnitude == 0) return with_sign<KIND, F::SIGN, F::BITS>(0, negative);

  // value = significand 2^(exponent - 23), with the significand in [2^23, 2^24).
  u64 significand;
  int exponent;
  if (magnitude >> 23 == 0) {
    const int up = __clz((int)magnitude) - 8;
    significand = magnitude << up;
    exponent = -126 - up;
  } else {
    significand = (magnitude & 0x7fffffu) | 0x800000u;
    exponent = (int)(magnitude >> 23) - 127;
  }
  u64 code;
  if (KIND == SCALE && exponent < F::MIN_EXPONENT) {
    code = 0;
  } else {
    const int top = exponent > F::MIN_EXPONENT ? exponent : F::MIN_EXPONENT;
    const u64 base = (u64)(top - F::MIN_EXPONENT) << M;
    const int dropped = 23 - M + top - exponent;
    u64 whole = 0, fraction = 1;
    u32 width = 63; // far below the quantum: any small fraction acts the same
    if (dropped < 64) {
      whole = significand >> dropped;
      fraction = significand & ((1ull << dropped) - 1);
      width = dropped;
    }
    const u64 half = 1ull << (width - 1);
    bool up = false;
    if (RULE == NEAREST_EVEN) up = fraction > half || (fraction == half && (whole & 1));
    if (RULE == NEAREST_AWAY) up = fraction >= half;
    if (RULE == UP) up = !negative && fraction != 0;
    if (RULE == DOWN) up = negative && fraction != 0;
    if (RULE == STOCHASTIC) {
      const u64 cut = (fraction << RANDOM_BITS) >> width;
      const u64 mask = (1ull << RANDOM_BITS) - 1;
      up = cut + (random & mask) > mask;
    }
    code = base + whole - (KIND == SCALE ? 1 : 0) + (up ? 1 : 0);
  }
  if (code > F::MAX) {
    const bool inward = RULE == TOWARD_ZERO || (RULE == UP && negative) || (RULE == DOWN && !negative);
    code = SPECIAL && !inward ? F::SPECIAL : F::MAX;
  }
  return with_sign<KIND, F::SIGN, F::BITS>((u32)code, negative);
}

// The formats that the hardware knows, two at a time: the first in the low half of the word.

#ifdef ONESIGMA_EMULATED
DEVICE float clamped(float x, float limit) {
  return x != x ? x : fminf(fmaxf(x, -limit), limit);
}
DEVICE void unpack_pair_f16(u32 word, float* x) {
  x[0] = decode_any<5, 10, 15, IEEE>(word & 0xffff);
  x[1] = decode_any<5, 10, 15, IEEE>(word >> 16);
}
DEVICE u32 pack_pair_f16(float a, float b) {
  return encode_any<5, 10, 15, IEEE, NEAREST_EVEN, true, 0>(a, 0) |
         encode_any<5, 10, 15, IEEE, NEAREST_EVEN, true, 0>(b, 0) << 16;
}
DEVICE u32 pack_pair_bf16(float a, float b) {
  return encode_any<8, 7, 127, IEEE, NEAREST_EVEN, true, 0>(a, 0) |
         encode_any<8, 7, 127, IEEE, NEAREST_EVEN, true, 0>(b, 0) << 16;
}
DEVICE u32 saturated_pair_f16(float a, float b) {
  return pack_pair_f16(clamped(a, 65504.0f), clamped(b, 65504.0f));
}
DEVICE u32 saturated_pair_bf16(float a, float b) {
  return pack_pair_bf16(clamped(a, 0x1.fep127f), clamped(b, 0x1.fep127f));
}
DEVICE u32 pack_pair_e4m3(float a, float b) {
  return encode_any<4, 3, 7, FINITE_NAN, NEAREST_EVEN, false, 0>(a, 0) |
         encode_any<4, 3, 7, FINITE_NAN, NEAREST_EVEN, false, 0>(b, 0) << 8;
}
DEVICE u32 pack_pair_e5m2(float a, float b) {
  return encode_any<5, 2, 15, IEEE, NEAREST_EVEN, false, 0>(a, 0) |
         encode_any<5, 2, 15, IEEE, NEAREST_EVEN, false, 0>(b, 0) << 8;
}
DEVICE u32 halves_of_e4m3(u32 pair) {
  return pack_pair_f16(decode_any<4, 3, 7, FINITE_NAN>(pair & 0xff),
                       decode_any<4, 3, 7, FINITE_NAN>(pair >> 8 & 0xff));
}
#else
DEVICE void unpack_pair_f16(u32 word, float* x) {
  asm("{ .reg .f16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high; }"
      : "=f"(x[0]), "=f"(x[1])
      : "r"(word));
}
DEVICE u32 pack_pair_f16(float a, float b) {
  u32 word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(b), "f"(a));
  return word;
}
DEVICE u32 pack_pair_bf16(float a, float b) {
  u32 word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(b), "f"(a));
  return word;
}
// Infinities and what is beyond the largest value become that; NaN stays NaN.
DEVICE u32 saturated_pair_f16(float a, float b) {
  u32 word;
  asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(b), "f"(a));
  return word;
}
DEVICE u32 saturated_pair_bf16(float a, float b) {
  u32 word;
  asm("cvt.rn.satfinite.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(b), "f"(a));
  return word;
}
DEVICE u32 pack_pair_e4m3(float a, float b) {
  u16 word;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(word) : "f"(b), "f"(a));
  return word;
}
DEVICE u32 pack_pair_e5m2(float a, float b) {
  u16 word;
  asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(word) : "f"(b), "f"(a));
  return word;
}
DEVICE u32 halves_of_e4m3(u32 pair) {
  u32 word;
  const u16 codes = (u16)pair;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(word) : "h"(codes));
  return word;
}
#endif

// ---------------------------------------------------------------------------- vectors
//
// N elements are in f32 or packed: for N = 8 as many 32-bit words as their codes fill, for N = 1
// one code in one word. EXACT keeps the sign of NaN and its canonical code, as a cast must; the
// other ops only keep NaN.

template <int BYTES, int N>
struct Vector {
  static const int WORDS = N == 8 ? 2 * BYTES : 1;
};

template <int BYTES, int N>
DEVICE void load_words(const void* from, u64 index, u32* word) {
  if (N == 8 && BYTES == 1) {
    const uint2 all = ((const uint2*)from)[index / 8];
    word[0] = all.x, word[1 % Vector<BYTES, N>::WORDS] = all.y;
  } else if (N == 8) {
#pragma unroll
    for (int part = 0; part < BYTES / 2; part++) {
      const uint4 all = ((const uint4*)from)[index / 8 * (BYTES / 2) + part];
      const int at = 4 * part, words = Vector<BYTES, N>::WORDS;
      word[at % words] = all.x, word[(at + 1) % words] = all.y;
      word[(at + 2) % words] = all.z, word[(at + 3) % words] = all.w;
    }
  } else if (BYTES == 1) {
    word[0] = ((const u8*)from)[index];
  } else if (BYTES == 2) {
    word[0] = ((const u16*)from)[index];
  } else {
    word[0] = ((const u32*)from)[index];
  }
}

template <int BYTES, int N>
DEVICE void store_words(void* to, u64 index, const u32* word) {
  if (N == 8 && BYTES == 1) {
    uint2 all;
    all.x = word[0], all.y = word[1 % Vector<BYTES, N>::WORDS];
    ((uint2*)to)[index / 8] = all;
  } else if (N == 8) {
#pragma unroll
    for (int part = 0; part < BYTES / 2; part++) {
      const int at = 4 * part, words = Vector<BYTES, N>::WORDS;
      uint4 all;
      all.x = word[at % words], all.y = word[(at + 1) % words];
      all.z = word[(at + 2) % words], all.w = word[(at + 3) % words];
      ((uint4*)to)[index / 8 * (BYTES / 2) + part] = all;
    }
  } else if (BYTES == 1) {
    ((u8*)to)[index] = (u8)word[0];
  } else if (BYTES == 2) {
    ((u16*)to)[index] = (u16)word[0];
  } else {
    ((u32*)to)[index] = word[0];
  }
}

// The code of element `e`, and its place in a word.
template <int BYTES, int N>
DEVICE u32 code_at(const u32* word, int e) {
  if (N == 1 || BYTES == 4) return word[e];
  return BYTES == 2 ? word[e / 2] >> e % 2 * 16 & 0xffff : word[e / 4] >> e % 4 * 8 & 0xff;
}
template <int BYTES, int N>
DEVICE void put_code(u32* word, int e, u32 code) {
  const int many = N == 1 ? 1 : 4 / BYTES;
  const u32 shift = e % many * (N == 1 ? 0 : 8 * BYTES);
  word[e / many] = e % many == 0 ? code : word[e / many] | code << shift;
}

template <int N>
DEVICE void unpack_f32(const u32* word, float* x) {
#pragma unroll
  for (int e = 0; e < N; e++) x[e] = __uint_as_float(word[e]);
}
template <int N>
DEVICE void unpack_u32(const u32* word, float* x) {
#pragma unroll
  for (int e = 0; e < N; e++) x[e] = (float)word[e];
}
template <int N>
DEVICE void unpack_bf16(const u32* word, float* x) {
#pragma unroll
  for (int e = 0; e < N; e++)
    x[e] = __uint_as_float(e % 2 ? word[e / 2] & 0xffff0000u : word[e / 2] << 16);
}
template <int N>
DEVICE void unpack_f16(const u32* word, float* x) {
  float pair[2];
#pragma unroll
  for (int p = 0; p < (N + 1) / 2; p++) {
    unpack_pair_f16(word[p], pair);
    x[2 * p] = pair[0];
    if (2 * p + 1 < N) x[(2 * p + 1) % N] = pair[1];
  }
}
template <int N>
DEVICE void unpack_e5m2(const u32* word, float* x) {
  // E5M2 is the high byte of F16.
  u32 halves[(N + 1) / 2];
#pragma unroll
  for (int p = 0; p < (N + 1) / 2; p++)
    halves[p] = __byte_perm(word[p / 2], 0, p % 2 ? 0x3424 : 0x1404);
  unpack_f16<N>(halves, x);
}
template <int N>
DEVICE void unpack_e4m3(const u32* word, float* x) {
  u32 halves[(N + 1) / 2];
#pragma unroll
  for (int p = 0; p < (N + 1) / 2; p++) halves[p] = halves_of_e4m3(word[p / 2] >> p % 2 * 16);
  unpack_f16<N>(halves, x);
}
template <int N>
DEVICE bool has_nan(const float* x) {
  bool has = false;
#pragma unroll
  for (int e = 0; e < N; e++) has |= x[e] != x[e];
  return has;
}
// Gives NaN the sign of its code, which the hardware's conversions lose.
template <int BYTES, int N>
DEVICE void sign_nan(const u32* word, float* x) {
  if (!has_nan<N>(x)) return;
#pragma unroll
  for (int e = 0; e < N; e++) {
    const u32 sign = code_at<BYTES, N>(word, e) >> (8 * BYTES - 1) << 31;
    if (x[e] != x[e]) x[e] = not_a_number(sign);
  }
}
template <int BYTES, int E, int M, int B, int KIND, int N>
DEVICE void unpack_any(const u32* word, float* x) {
#pragma unroll
  for (int e = 0; e < N; e++) x[e] = decode_any<E, M, B, KIND>(code_at<BYTES, N>(word, e));
}

template <int N>
DEVICE void pack_f32(const float* x, u32* word) {
#pragma unroll
  for (int e = 0; e < N; e++) word[e] = __float_as_uint(x[e]);
}
// Canonical NaN with its sign in place of what the hardware makes of it.
template <int BYTES, int N, u32 NAN_CODE, u32 SIGN>
DEVICE void keep_nan(const float* x, u32* word) {
  if (!has_nan<N>(x)) return;
#pragma unroll
  for (int e = 0; e < N; e++) {
    if (x[e] == x[e]) continue;
    const u32 code = NAN_CODE | (__float_as_uint(x[e]) >> 31 ? SIGN : 0);
    const int many = N == 1 ? 1 : 4 / BYTES;
    const u32 shift = e % many * 8 * BYTES, mask = (u32)((1ull << (8 * BYTES)) - 1) << shift;
    word[e / many] = (word[e / many] & ~mask) | code << shift;
  }
}
template <int N, bool SPECIAL, bool EXACT>
DEVICE void pack_f16(const float* x, u32* word) {
#pragma unroll
  for (int p = 0; p < (N + 1) / 2; p++) {
    const float a = x[2 * p], b = 2 * p + 1 < N ? x[(2 * p + 1) % N] : 0.0f;
    word[p] = SPECIAL ? pack_pair_f16(a, b) : saturated_pair_f16(a, b);
  }
  if (EXACT) keep_nan<2, N, 0x7e00, 0x8000>(x, word);
}
template <int N, bool SPECIAL, bool EXACT>
DEVICE void pack_bf16(const float* x, u32* word) {
#pragma unroll
  for (int p = 0; p < (N + 1) / 2; p++) {
    const float a = x[2 * p], b = 2 * p + 1 < N ? x[(2 * p + 1) % N] : 0.0f;
    word[p] = SPECIAL ? pack_pair_bf16(a, b) : saturated_pair_bf16(a, b);
  }
  if (EXACT) keep_nan<2, N, 0x7fc0, 0x8000>(x, word);
}
template <int N, bool EXACT>
DEVICE void pack_e4m3(const float* x, u32* word) {
#pragma unroll
  for (int p = 0; p < (N + 1) / 2; p++) {
    const u32 pair = pack_pair_e4m3(x[2 * p], 2 * p + 1 < N ? x[(2 * p + 1) % N] : 0.0f);
    word[p / 2] = p % 2 ? word[p / 2] | pair << 16 : pair;
  }
  if (EXACT) keep_nan<1, N, 0x7f, 0x80>(x, word);
}
template <int N, bool EXACT>
DEVICE void pack_e5m2(const float* x, u32* word) {
#pragma unroll
  for (int p = 0; p < (N + 1) / 2; p++) {
    const u32 pair = pack_pair_e5m2(x[2 * p], 2 * p + 1 < N ? x[(2 * p + 1) % N] : 0.0f);
    word[p / 2] = p % 2 ? word[p / 2] | pair << 16 : pair;
  }
  if (EXACT) keep_nan<1, N, 0x7e, 0x80>(x, word);
}
template <int BYTES, int E, int M, int B, int KIND, int RULE, bool SPECIAL, int RANDOM_BITS, int N>
DEVICE void pack_any(const float* x, const u32* random, u32* word) {
#pragma unroll
  for (int e = 0; e < N; e++)
    put_code<BYTES, N>(word, e,
                       encode_any<E, M, B, KIND, RULE, SPECIAL, RANDOM_BITS>(x[e], random ? random[e] : 0));
}

// ---------------------------------------------------------------------------- random bits

// Philox 4x32-10 (Salmon et al., SC 2011); the layout is that of `onesigma_format::philox`.
struct Noise {
  u32 key0, key1, tensor, step;
};

DEVICE Noise noise_of(const void* seed, const void* step, u32 tensor) {
  Noise noise;
  noise.key0 = seed ? ((const u32*)seed)[0] : 0;
  noise.key1 = seed ? ((const u32*)seed)[1] : 0;
  noise.tensor = tensor;
  noise.step = step ? ((const u32*)step)[0] : 0;
  return noise;
}

DEVICE uint4 philox(Noise noise, u64 block) {
  u32 c0 = (u32)block, c1 = (u32)(block >> 32), c2 = noise.tensor, c3 = noise.step;
  u32 k0 = noise.key0, k1 = noise.key1;
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const u64 product0 = 0xd2511f53ull * c0;
    const u64 product1 = 0xcd9e8d57ull * c2;
    c0 = (u32)(product1 >> 32) ^ c1 ^ k0;
    c1 = (u32)product1;
    c2 = (u32)(product0 >> 32) ^ c3 ^ k1;
    c3 = (u32)product0;
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
  uint4 words;
  words.x = c0, words.y = c1, words.z = c2, words.w = c3;
  return words;
}

// The BITS random bits of element `index`.
template <int BITS>
DEVICE u32 draw(Noise noise, u64 index) {
  const u32 per_word = 32 / BITS;
  const u64 word = index / per_word;
  const uint4 words = philox(noise, word / 4);
  const u32 part[4] = {words.x, words.y, words.z, words.w};
  const u32 own = (u32)(word % 4) == 0 ? part[0] : (u32)(word % 4) == 1 ? part[1]
                  : (u32)(word % 4) == 2 ? part[2] : part[3];
  return own >> (u32)(index % per_word) * BITS & (0xffffffffu >> (32 - BITS));
}

// Those of N elements from `index`, a multiple of N.
template <int BITS, int N>
DEVICE void draws(Noise noise, u64 index, u32* random) {
  if (N == 1) {
    random[0] = draw<BITS>(noise, index);
    return;
  }
  const u32 per_word = 32 / BITS;
#pragma unroll
  for (u32 first = 0; first < N; first += 4 * per_word) {
    const uint4 words = philox(noise, (index + first) / per_word / 4);
    const u32 part[4] = {words.x, words.y, words.z, words.w};
    // With 8 bits a block holds 16 elements, of which these are the first or last 8.
    const u32 skip = (u32)((index + first) / per_word % 4);
#pragma unroll
    for (u32 e = 0; e < N && e < 4 * per_word; e++) {
      const u32 at = e / per_word;
      const u32 word = BITS == 8 ? (skip ? part[(2 + at) % 4] : part[at % 4]) : part[at % 4];
      random[(first + e) % N] = word >> e % per_word * BITS & (0xffffffffu >> (32 - BITS));
    }
  }
}

DEVICE float uniform(u32 word) { return (float)(word >> 8) * 0x1p-24f; }

// Wichura's AS 241 in f64 operations that are not contracted, so that the bits are the same on
// every machine; see `onesigma_format::philox::normal`.
DEVICE double times(double a, double b) { return __dmul_rn(a, b); }
DEVICE double plus(double a, double b) { return __dadd_rn(a, b); }
DEVICE double over(double a, double b) { return __ddiv_rn(a, b); }

DEVICE double horner(const double* c, double x) {
  double sum = c[7];
#pragma unroll
  for (int power = 6; power >= 0; power--) sum = plus(times(sum, x), c[power]);
  return sum;
}

DEVICE double logarithm(double x) {
  const long long bits = __double_as_longlong(x);
  int exponent = (int)(bits >> 52) - 1023;
  double mantissa = __longlong_as_double((bits & ((1ll << 52) - 1)) | 1023ll << 52);
  if (mantissa > 1.41421356237309504880) {
    mantissa = times(mantissa, 0.5);
    exponent += 1;
  }
  const double s = over(plus(mantissa, -1.0), plus(mantissa, 1.0));
  const double square = times(s, s);
  double series = 0.0;
#pragma unroll
  for (int odd = 23; odd >= 1; odd -= 2) series = plus(times(series, square), over(1.0, (double)odd));
  return plus(times((double)exponent, 0.693147180559945309417), times(times(2.0, s), series));
}

DEVICE double square_root(double x) {
  double root = __longlong_as_double((__double_as_longlong(x) >> 1) + (1023ll << 51));
#pragma unroll
  for (int step = 0; step < 5; step++) root = times(0.5, plus(root, over(x, root)));
  return root;
}

DEVICE float normal(u32 word) {
  const double centre[2][8] = {
      {3.3871328727963665, 1.3314166789178438e2, 1.9715909503065513e3, 1.373169376550946e4,
       4.592195393154987e4, 6.726577092700870e4, 3.343057558358813e4, 2.5090809287301227e3},
      {1.0, 4.231333070160091e1, 6.871870074920579e2, 5.394196021424751e3, 2.1213794301586597e4,
       3.930789580009271e4, 2.8729085735721943e4, 5.226495278852854e3}};
  const double near_tail[2][8] = {
      {1.4234371107496835, 4.630337846156546, 5.769497221460691, 3.6478483247632045,
       1.2704582524523684, 2.417807251774506e-1, 2.2723844989269184e-2, 7.745450142783414e-4},
      {1.0, 2.053191626637759, 1.6763848301838038, 6.897673349851e-1, 1.4810397642748008e-1,
       1.5198666563616457e-2, 5.475938084995345e-4, 1.0507500716444169e-9}};
  const double far_tail[2][8] = {
      {6.657904643501103, 5.463784911164114, 1.7848265399172913, 2.9656057182850487e-1,
       2.6532189526576124e-2, 1.2426609473880784e-3, 2.7115555687434876e-5, 2.0103343992922881e-7},
      {1.0, 5.9983220655588794e-1, 1.369298809227358e-1, 1.4875361290850615e-2,
       7.868691311456133e-4, 1.8463183175100548e-5, 1.421511758316446e-7, 2.0442631033899398e-15}};
  const double q = plus(times(plus((double)word, 0.5), 0x1p-32), -0.5);
  const double magnitude = q < 0.0 ? -q : q;
  if (magnitude <= 0.425) {
    const double r = plus(0.180625, -times(q, q));
    return (float)times(q, over(horner(centre[0], r), horner(centre[1], r)));
  }
  const double r = square_root(-logarithm(plus(0.5, -magnitude)));
  const double x = r <= 5.0
                       ? over(horner(near_tail[0], plus(r, -1.6)), horner(near_tail[1], plus(r, -1.6)))
                       : over(horner(far_tail[0], plus(r, -5.0)), horner(far_tail[1], plus(r, -5.0)));
  return (float)(q < 0.0 ? -x : x);
}

// ---------------------------------------------------------------------------- functions

// NaN if either is.
#ifdef ONESIGMA_EMULATED
DEVICE float minimum(float a, float b) { return a != a ? a : b != b ? b : fminf(a, b); }
DEVICE float maximum(float a, float b) { return a != a ? a : b != b ? b : fmaxf(a, b); }
DEVICE float power_of_two_near(float x) { return exp2f(x); }
DEVICE float reciprocal_near(float x) { return 1.0f / x; }
DEVICE float quotient(float a, float b) { return a / b; }
DEVICE float root(float x) { return sqrtf(x); }
#else
DEVICE float minimum(float a, float b) {
  float c;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
  return c;
}
DEVICE float maximum(float a, float b) {
  float c;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
  return c;
}
// 2^x with a relative error below 2^-22; 0 below the smallest normal.
DEVICE float power_of_two_near(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// 1 / x for x of at least 1, to one unit in the last place; 0 beyond 2^126.
DEVICE float reciprocal_near(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// To two units in the last place, without a branch.
DEVICE float quotient(float a, float b) {
  float c;
  asm("div.full.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
  return c;
}
// With a relative error of 2^-23.
DEVICE float root(float x) {
  float y;
  asm("sqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#endif
DEVICE float sigmoid(float x) { return __fdividef(1.0f, 1.0f + expf(-x)); }
// By its series near 0 and by an exponential elsewhere; relative error below 1e-6. There e^2|x|
// only has to be good where it is below 2^25, which 2^y is with y rounded once.
DEVICE float hyperbolic_tangent(float x) {
  const float square = x * x;
  const float series =
      x + x * square *
              (-0.33333333f +
               square * (0.13333333f + square * (-0.053968254f + square * 0.021869488f)));
  const float grown = power_of_two_near(fabsf(x) * 2.8853900818f);
  const float far = copysignf(1.0f - __fdividef(2.0f, 1.0f + grown), x);
  return fabsf(x) < 0.3f ? series : far;
}

// tanh(x) with an absolute error of 2^-22: for sums with 1, in which a better one would not be seen.
DEVICE float tangent_beside_one(float x) {
  return fmaf(-2.0f, reciprocal_near(1.0f + power_of_two_near(x * 2.8853900818f)), 1.0f);
}

// ---------------------------------------------------------------------------- reductions

DEVICE float warp_sum(float x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
  return x;
}
DEVICE float warp_max(float x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    x = maximum(x, __shfl_xor_sync(0xffffffffu, x, distance));
  return x;
}

// Over all THREADS threads of a block that share a row; every thread gets the result.
template <int THREADS>
DEVICE float row_sum(float x, float* shared) {
  x = warp_sum(x);
  if (THREADS == 32) return x;
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  x = threadIdx.x % 32 < THREADS / 32 ? shared[threadIdx.x % 32] : 0.0f;
  return warp_sum(x);
}
template <int THREADS>
DEVICE float row_max(float x, float* shared) {
  x = warp_max(x);
  if (THREADS == 32) return x;
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  x = threadIdx.x % 32 < THREADS / 32 ? shared[threadIdx.x % 32] : __uint_as_float(0xff800000u);
  return warp_max(x);
}
