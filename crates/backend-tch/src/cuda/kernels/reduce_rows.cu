// A block reduces one part of the elements of one result.
extern "C" __global__ __launch_bounds__(256) void kernel($parameters$) {
  __shared__ float shared[32];
  const u32 kept = blockIdx.x;
  const u64 first = (u64)blockIdx.y * $chunk$;
  const u64 last = first + $chunk$ < $length$ull ? first + $chunk$ : $length$ull;
  float total[$lanes$];
  _Pragma("unroll") for (int e = 0; e < $lanes$; e++) total[e] = $start$;
  for (u64 r = first + threadIdx.x * $lanes$; r < last; r += 256 * $lanes$) {
    const u64 i = $index$;
    $element$
  }
  _Pragma("unroll") for (int e = 1; e < $lanes$; e++) { $combine$ }
  const float result = $finish$(total[0], shared);
  if (threadIdx.x == 0) ((float*)y0)[(u64)blockIdx.y * $kept$ + kept] = result;
}
