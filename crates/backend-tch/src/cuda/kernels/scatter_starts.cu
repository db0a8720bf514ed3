// `starts[r]` is the place of the first id that is not below r; each thread fills the rows from
// the id before its place to the id at it.
extern "C" __global__ __launch_bounds__(256) void kernel($parameters$) {
  const u32 place = blockIdx.x * 256 + threadIdx.x;
  if (place > $count$) return;
  const u32* const sorted = (const u32*)x0;
  u32* const starts = (u32*)y0;
  const u32 own = place < $count$ ? sorted[place] : 0xffffffffu;
  const u32 last = own < $rows$ ? own : $rows$;
  u32 row = 0;
  if (place > 0) {
    const u32 before = sorted[place - 1];
    if (before >= $rows$) return;
    row = before + 1;
  }
  for (; row <= last; row++) starts[row] = place;
}
