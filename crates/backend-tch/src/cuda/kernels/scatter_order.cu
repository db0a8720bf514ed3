// Sorts the positions of the ids by id, stably: the place of a position is the number of smaller
// ids plus that of equal ones before it. Each block counts for 256 positions, a quarter of its
// threads each over a quarter of the ids. Ids beyond the table come last.
extern "C" __global__ __launch_bounds__(1024) void kernel($parameters$) {
  __shared__ uint4 tile[256];
  __shared__ u32 places[4][256];
  u32* const words = (u32*)tile;
  const u32* const ids = (const u32*)x0;
  const u32 t = threadIdx.x, own = t % 256, quarter = t / 256;
  const u32 i = blockIdx.x * 256 + own;
  const u32 id = i < $count$ && ids[i] < $rows$ ? ids[i] : 0xffffffffu;
  u32 place = 0;
  for (u32 start = 0; start < $count$; start += 1024) {
    __syncthreads();
    // Past the end lies what is never smaller and never before.
    words[t] = start + t < $count$ && ids[start + t] < $rows$ ? ids[start + t] : 0xffffffffu;
    __syncthreads();
    const u32 first = start + quarter * 256;
    if (first + 256 <= i) {
      for (u32 j = 0; j < 64; j++) {
        const uint4 other = tile[quarter * 64 + j];
        place += (other.x <= id) + (other.y <= id) + (other.z <= id) + (other.w <= id);
      }
    } else if (first > i) {
      for (u32 j = 0; j < 64; j++) {
        const uint4 other = tile[quarter * 64 + j];
        place += (other.x < id) + (other.y < id) + (other.z < id) + (other.w < id);
      }
    } else {
      for (u32 j = 0; j < 256; j++) {
        const u32 other = words[quarter * 256 + j];
        place += other < id || (other == id && first + j < i);
      }
    }
  }
  places[quarter][own] = place;
  __syncthreads();
  if (quarter == 0 && i < $count$) {
    const u32 sum = places[0][own] + places[1][own] + places[2][own] + places[3][own];
    ((u32*)y0)[sum] = id;
    ((u32*)y1)[sum] = i;
  }
}
