extern "C" __global__ __launch_bounds__($threads$) void kernel($parameters$) {
  const u32 row = blockIdx.x;
  const u32 column = (blockIdx.y * $threads$ + threadIdx.x) * $lanes$;
  if (column >= $width$) return;
  const u32* const first = (const u32*)x1;
  const u32* const order = (const u32*)x2;
  float total[$lanes$];
  _Pragma("unroll") for (int e = 0; e < $lanes$; e++) total[e] = 0.0f;
  const u32 last = first[row + 1];
#pragma unroll 4
  for (u32 p = first[row]; p < last; p++) {
    u32 word[$words$];
    float value[$lanes$];
    $load$
    $unpack$
    _Pragma("unroll") for (int e = 0; e < $lanes$; e++) total[e] += value[e];
  }
  const u64 i = (u64)row * $width$ + column;
  $store$
}
