#define CLASSES $classes$
#define KEEP(j) ($keep$)
#define VALUE(j, e) ($value$)

// One block has one row of logits.
extern "C" __global__ __launch_bounds__($threads$) void kernel($parameters$) {
  __shared__ float shared[32];
  const u32 row = blockIdx.x;
  const u32 target = ((const u32*)x1)[row];
  u32 code[$registers$];
  float largest = __uint_as_float(0xff800000u);
#pragma unroll
  for (int j = 0; j < $count$; j++) {
    const u32 column = (j * $threads$ + threadIdx.x) * $lanes$;
    const u64 i = (u64)row * CLASSES + column;
    if (column < CLASSES) {
      $load$
      _Pragma("unroll") for (int e = 0; e < $lanes$; e++) largest = maximum(largest, VALUE(j, e));
    }
  }
  largest = row_max<$threads$>(largest, shared);
  float total = 0.0f;
#pragma unroll
  for (int j = 0; j < $count$; j++) {
    const u32 column = (j * $threads$ + threadIdx.x) * $lanes$;
    const u64 i = (u64)row * CLASSES + column;
    if (column < CLASSES) {
      $reload$
      _Pragma("unroll") for (int e = 0; e < $lanes$; e++) total += expf(VALUE(j, e) - largest);
    }
  }
  total = row_sum<$threads$>(total, shared);
  const bool known = target < CLASSES;
  u32 own[1] = {0};
  if (known) { $target_load$ }
  const float loss = known ? logf(total) + largest - $mult$ * $target_value$ : not_a_number(0);
  // The gradient may replace the logits: everyone has read the target's by now.
  __syncthreads();
  $loss$
#if $has_gradient$
  $load_upstream$
  const float factor = known ? $factor$ : not_a_number(0);
  const float rest = 1.0f / total;
#pragma unroll
  for (int j = 0; j < $count$; j++) {
    const u32 column = (j * $threads$ + threadIdx.x) * $lanes$;
    const u64 i = (u64)row * CLASSES + column;
    if (column < CLASSES) {
      $reload$
      $gradient$
    }
  }
#endif
}
