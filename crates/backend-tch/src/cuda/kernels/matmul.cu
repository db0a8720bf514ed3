// A block makes 64 x 64 results, a thread 4 x 4 of them, in f32 steps of 16 along k.
extern "C" __global__ __launch_bounds__(256) void kernel($parameters$) {
  __shared__ float left[16][65];
  __shared__ float right[16][65];
  const u32 first_row = blockIdx.y * 64, first_column = blockIdx.x * 64;
  const u64 left_base = (u64)blockIdx.z * ($m$ull * $k$ull);
  const u64 right_base = (u64)blockIdx.z * $right_step$ull;
  const u32 down = threadIdx.x / 16, side = threadIdx.x % 16;
  float total[4][4];
#pragma unroll
  for (int r = 0; r < 4; r++)
#pragma unroll
    for (int c = 0; c < 4; c++) total[r][c] = 0.0f;
  for (u32 start = 0; start < $k$; start += 16) {
#pragma unroll
    for (int step = 0; step < 4; step++) {
      const u32 flat = step * 256 + threadIdx.x;
      {
        const u32 inner = $left_by_k$ ? flat % 16 : flat / 64, outer = $left_by_k$ ? flat / 16 : flat % 64;
        const u32 p = start + inner, row = first_row + outer;
        float value = 0.0f;
        if (p < $k$ && row < $m$) { $load_left$ }
        left[inner][outer] = value;
      }
      {
        const u32 inner = $right_by_k$ ? flat % 16 : flat / 64, outer = $right_by_k$ ? flat / 16 : flat % 64;
        const u32 p = start + inner, column = first_column + outer;
        float value = 0.0f;
        if (p < $k$ && column < $n$) { $load_right$ }
        right[inner][outer] = value;
      }
    }
    __syncthreads();
    // Only what exists is multiplied: 0 times infinity would not be 0.
    const u32 steps = $k$ - start < 16 ? $k$ - start : 16;
    for (u32 p = 0; p < steps; p++) {
      float a[4], b[4];
#pragma unroll
      for (int r = 0; r < 4; r++) a[r] = left[p][down * 4 + r], b[r] = right[p][side * 4 + r];
#pragma unroll
      for (int r = 0; r < 4; r++)
#pragma unroll
        for (int c = 0; c < 4; c++) total[r][c] = fmaf(a[r], b[c], total[r][c]);
    }
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < 4; r++)
#pragma unroll
    for (int c = 0; c < 4; c++) {
      const u32 row = first_row + down * 4 + r, column = first_column + side * 4 + c;
      if (row < $m$ && column < $n$) {
        const u64 i = ((u64)blockIdx.z * $m$ull + row) * $n$ull + column;
        $store$
      }
    }
}
