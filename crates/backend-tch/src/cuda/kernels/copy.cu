extern "C" __global__ __launch_bounds__(256) void kernel($parameters$) {
  const u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
  if (i >= $numel$ull) return;
  (($word$*)y0)[$to$] = ((const $word$*)x0)[$from$];
}
