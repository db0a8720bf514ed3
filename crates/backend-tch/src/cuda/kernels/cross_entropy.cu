#define CLASSES $classes$
#define KEEP(j) ($keep$)
#define LOG2_E 1.4426950408889634f
// Logits of the vector at `j` in `x`, times the multiplier.
#define LOGITS(j)           \
  float x[$lanes$];         \
  { $reload$ }              \
  _Pragma("unroll") for (int e = 0; e < $lanes$; e++) x[e] = $mult$ * x[e];

// e^(x - largest), with bias = -largest log2(e).
DEVICE float exponential(float x, float bias) { return power_of_two_near(fmaf(x, LOG2_E, bias)); }

// One block has one row of logits, which stays packed in registers where it fits: so two rows are
// at work on a multiprocessor, and one is read while the other is computed.
extern "C" __global__ __launch_bounds__($threads$, $together$) void kernel($parameters$) {
  __shared__ float shared[32];
  const u32 row = blockIdx.x;
  const u32 target = ((const u32*)x1)[row];
  u32 kept[$registers$];
  float largest = __uint_as_float(0xff800000u);
#pragma unroll
  for (int j = 0; j < $count$; j++) {
    const u32 column = (j * $threads$ + threadIdx.x) * $lanes$;
    const u64 i = (u64)row * CLASSES + column;
    if (column < CLASSES) { $load$ }
  }
#pragma unroll
  for (int j = 0; j < $count$; j++) {
    const u32 column = (j * $threads$ + threadIdx.x) * $lanes$;
    const u64 i = (u64)row * CLASSES + column;
    if (column < CLASSES) {
      LOGITS(j)
      _Pragma("unroll") for (int e = 0; e < $lanes$; e++) largest = maximum(largest, x[e]);
    }
  }
  largest = row_max<$threads$>(largest, shared);
  const float bias = -largest * LOG2_E;
  float total = 0.0f;
#pragma unroll
  for (int j = 0; j < $count$; j++) {
    const u32 column = (j * $threads$ + threadIdx.x) * $lanes$;
    const u64 i = (u64)row * CLASSES + column;
    if (column < CLASSES) {
      LOGITS(j)
      _Pragma("unroll") for (int e = 0; e < $lanes$; e++) total += exponential(x[e], bias);
    }
  }
  total = row_sum<$threads$>(total, shared);
  const bool known = target < CLASSES;
  float own = 0.0f;
  if (known) { $target_load$ }
  const float loss = known ? logf(total) + largest - $mult$ * own : not_a_number(0);
  // The gradient may replace the logits: everyone has read the target's by now.
  __syncthreads();
  $loss$
#if $has_gradient$
  float upstream = 0.0f;
  { $load_upstream$ }
  const float factor = known ? $alpha$ * upstream : not_a_number(0);
  const float share = factor / total;
#pragma unroll
  for (int j = 0; j < $count$; j++) {
    const u32 column = (j * $threads$ + threadIdx.x) * $lanes$;
    const u64 i = (u64)row * CLASSES + column;
    if (column < CLASSES) {
      LOGITS(j)
      float v_g[$lanes$];
      _Pragma("unroll") for (int e = 0; e < $lanes$; e++) v_g[e] = exponential(x[e], bias) * share;
      if (target - column < $lanes$) {
        _Pragma("unroll") for (int e = 0; e < $lanes$; e++)
          if (column + e == target) v_g[e] -= factor;
      }
      $gradient$
    }
  }
#endif
}
