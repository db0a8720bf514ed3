extern "C" __global__ __launch_bounds__(256) void kernel($parameters$) {
  const u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
  if (i >= $kept$ull) return;
  float total = $start$;
  for (u32 part = 0; part < $parts$; part++) { $combine$ }
  $body$
}
