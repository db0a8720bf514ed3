// A block has DOWN DEEP x 8 SIDE elements: SIDE threads side by side have 8 columns each, DOWN groups
// of them have DEEP rows each, 4 or 8.
#define SIDE $side$
#define DOWN $down$
#define DEEP $deep$

DEVICE uint2 two_words(const u32* word) {
  uint2 both;
  both.x = word[0], both.y = word[1];
  return both;
}

// Writes a thread's DEEP x 8 codes into the transposed matrix, in which a column of ROWS elements is
// a row. Through shared memory, so that DOWN threads write DOWN DEEP bytes in a row.
template <int ROWS>
DEVICE void store_transposed(const uint2* tile, void* to, uint2* shared, u32 first_row,
                             u32 first_column) {
  const u32 side = threadIdx.x % SIDE, down = threadIdx.x / SIDE;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    // Four columns: transposed blocks of 4 x 4 bytes.
    u32 column[DEEP / 4][4];
#pragma unroll
    for (int part = 0; part < DEEP / 4; part++) {
      u32 word[4];
#pragma unroll
      for (int r = 0; r < 4; r++) word[r] = half ? tile[4 * part + r].y : tile[4 * part + r].x;
      const u32 low01 = __byte_perm(word[0], word[1], 0x5140);
      const u32 low23 = __byte_perm(word[2], word[3], 0x5140);
      const u32 high01 = __byte_perm(word[0], word[1], 0x7362);
      const u32 high23 = __byte_perm(word[2], word[3], 0x7362);
      column[part][0] = __byte_perm(low01, low23, 0x5410);
      column[part][1] = __byte_perm(low01, low23, 0x7632);
      column[part][2] = __byte_perm(high01, high23, 0x5410);
      column[part][3] = __byte_perm(high01, high23, 0x7632);
    }
#pragma unroll
    for (int c = 0; c < 4; c++) {
      // The exclusive or spreads a column of threads over the banks.
      const u32 place = (side * 8 + half * 4 + c) * DOWN + (down ^ side % DOWN);
      if constexpr (DEEP == 8) {
        uint2 bytes;
        bytes.x = column[0][c];
        bytes.y = column[DEEP / 4 - 1][c];
        shared[place] = bytes;
      } else {
        ((u32*)shared)[place] = column[0][c];
      }
    }
  }
  __syncthreads();
  const u32 along = threadIdx.x % DOWN, across = threadIdx.x / DOWN;
#pragma unroll
  for (int k = 0; k < 8; k++) {
    const u32 own = k * SIDE + across;
    const u64 at = ((u64)(first_column + own) * ROWS + first_row) / DEEP + along;
    const u32 place = own * DOWN + (along ^ (own >> 3) % DOWN);
    if constexpr (DEEP == 8) {
      ((uint2*)to)[at] = shared[place];
    } else {
      ((u32*)to)[at] = ((u32*)shared)[place];
    }
  }
}

extern "C" __global__ __launch_bounds__(SIDE * DOWN) void kernel($parameters$) {
  __shared__ uint2 shared[SIDE * DOWN * DEEP];
  const u32 first_column = blockIdx.x * 8 * SIDE, first_row = blockIdx.y * DOWN * DEEP;
  const u32 side = threadIdx.x % SIDE, down = threadIdx.x / SIDE;
  $declarations$
#pragma unroll
  for (int row = 0; row < DEEP; row++) {
    const u64 i = (u64)(first_row + down * DEEP + row) * $columns$ + first_column + side * 8;
    $body$
  }
  $writes$
}
