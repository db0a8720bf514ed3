// One block sorts the positions of the ids by id, stably: `first[r] .. first[r + 1]` are the
// places in `order` of the positions whose id is r. Ids beyond the table are left out.
extern "C" __global__ __launch_bounds__(1024) void kernel($parameters$) {
  __shared__ uint4 shared[256];
  u32* const words = (u32*)shared;
  const u32* const ids = (const u32*)x0;
  u32* const first = (u32*)y0;
  u32* const next = first + $rows$ + 1;
  u32* const order = (u32*)y1;
  const u32 t = threadIdx.x;

  for (u32 r = t; r <= $rows$; r += 1024) next[r] = 0;
  __syncthreads();
  for (u32 i = t; i < $count$; i += 1024)
    if (ids[i] < $rows$) atomicAdd(&next[ids[i]], 1u);
  __syncthreads();

  // Running sum of the counts, 1024 rows at a time.
  u32 base = 0;
  for (u32 start = 0; start <= $rows$; start += 1024) {
    const u32 r = start + t;
    const u32 own = r <= $rows$ ? next[r] : 0;
    words[t] = own;
    __syncthreads();
    for (u32 distance = 1; distance < 1024; distance *= 2) {
      const u32 other = t >= distance ? words[t - distance] : 0;
      __syncthreads();
      words[t] += other;
      __syncthreads();
    }
    if (r <= $rows$) {
      first[r] = base + words[t] - own;
      next[r] = base + words[t] - own;
    }
    base += words[1023];
    __syncthreads();
  }

  for (u32 start = 0; start < $count$; start += 1024) {
    const u32 i = start + t;
    const u32 id = i < $count$ ? ids[i] : 0xffffffffu;
    words[t] = id;
    __syncthreads();
    u32 before = 0, behind = 0;
    for (u32 j = 0; j < 256; j++) {
      const uint4 four = shared[j];
      const u32 other[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (u32 e = 0; e < 4; e++) {
        before += other[e] == id && 4 * j + e < t;
        behind += other[e] == id && 4 * j + e > t;
      }
    }
    const bool known = id < $rows$;
    if (known) order[next[id] + before] = i;
    __syncthreads();
    if (known && behind == 0) next[id] += before + 1;
    __syncthreads();
  }
}
