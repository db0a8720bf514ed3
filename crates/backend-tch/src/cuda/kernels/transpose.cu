// Tiles of 32 x 32 bytes through shared memory.
extern "C" __global__ __launch_bounds__(256) void kernel($parameters$) {
  __shared__ u8 tile[32][33];
  const u32 first_row = blockIdx.y * 32, first_column = blockIdx.x * 32;
  for (u32 r = threadIdx.x / 32; r < 32; r += 8) {
    const u32 row = first_row + r, column = first_column + threadIdx.x % 32;
    if (row < $rows$ && column < $columns$) tile[r][threadIdx.x % 32] = ((const u8*)x0)[(u64)row * $columns$ + column];
  }
  __syncthreads();
  for (u32 c = threadIdx.x / 32; c < 32; c += 8) {
    const u32 row = first_row + threadIdx.x % 32, column = first_column + c;
    if (row < $rows$ && column < $columns$) ((u8*)y0)[(u64)column * $rows$ + row] = tile[threadIdx.x % 32][c];
  }
}
