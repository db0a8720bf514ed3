#define ROW_THREADS $row_threads$
// For each element of the row that this thread has, with its place `k` in the arrays.
#define EACH(body)                                        \
  _Pragma("unroll") for (int j = 0; j < $count$; j++) {   \
    if ((j * ROW_THREADS + lane) * $lanes$ < $width$) {   \
      _Pragma("unroll") for (int e = 0; e < $lanes$; e++) { \
        const int k = j * $lanes$ + e;                    \
        body                                              \
      }                                                   \
    }                                                     \
  }

extern "C" __global__ __launch_bounds__(ROW_THREADS * $together$) void kernel($parameters$) {
  __shared__ float shared[32];
  const u32 lane = threadIdx.x % ROW_THREADS;
  const u32 row = blockIdx.x * $together$ + threadIdx.x / ROW_THREADS;
  // Several rows share a block only if each has a warp of its own.
  if (row >= $rows$) return;
  $arrays$
#pragma unroll
  for (int j = 0; j < $count$; j++) {
    const u32 column = (j * ROW_THREADS + lane) * $lanes$;
    if (column < $width$) {
      const u64 i = (u64)row * $width$ + column;
      $before$
    } else {
      _Pragma("unroll") for (int e = 0; e < $lanes$; e++) {
        $zeros$
      }
    }
  }
  $statistics$
#pragma unroll
  for (int j = 0; j < $count$; j++) {
    const u32 column = (j * ROW_THREADS + lane) * $lanes$;
    if (column < $width$) {
      const u64 i = (u64)row * $width$ + column;
      $after$
    }
  }
}
