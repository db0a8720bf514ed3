extern "C" __global__ __launch_bounds__($threads$) void kernel($parameters$) {
  const u64 i = ((u64)blockIdx.x * $threads$ + threadIdx.x) * $lanes$;
  if (i >= $numel$ull) return;
  $body$
}
