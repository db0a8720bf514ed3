// A block reduces 32 vectors of columns; its eight warps take every eighth row of their part.
extern "C" __global__ __launch_bounds__(256) void kernel($parameters$) {
  __shared__ float shared[8][32];
  const u64 column = ((u64)blockIdx.x * 32 + threadIdx.x % 32) * $lanes$;
  const u32 warp = threadIdx.x / 32;
  float total[$lanes$];
  _Pragma("unroll") for (int e = 0; e < $lanes$; e++) total[e] = $start$;
  if (column < $kept$) {
    for (u64 r = (u64)blockIdx.y * 8 + warp; r < $length$; r += 8 * $parts$) {
      const u64 i = r * $kept$ + column;
      $element$
    }
  }
#pragma unroll
  for (int e = 0; e < $lanes$; e++) {
    __syncthreads();
    shared[warp][threadIdx.x % 32] = total[e];
    __syncthreads();
    if (warp == 0 && column < $kept$) {
      float value = total[e];
      for (int other = 1; other < 8; other++) { $combine$ }
      ((float*)y0)[(u64)blockIdx.y * $kept$ + column + e] = value;
    }
  }
}
