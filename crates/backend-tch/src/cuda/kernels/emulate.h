// Runs the kernels on the host: for tests on machines without a GPU. One fiber is one thread of a
// block; a barrier switches to the next fiber until all have arrived.
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define ONESIGMA_EMULATED
#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)

struct uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct float4 { float x, y, z, w; };
struct Index { unsigned x, y, z; };
static Index blockIdx, threadIdx, gridDim, blockDim;

static inline unsigned __float_as_uint(float x) { unsigned y; memcpy(&y, &x, 4); return y; }
static inline float __uint_as_float(unsigned x) { float y; memcpy(&y, &x, 4); return y; }
static inline long long __double_as_longlong(double x) { long long y; memcpy(&y, &x, 8); return y; }
static inline double __longlong_as_double(long long x) { double y; memcpy(&y, &x, 8); return y; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __ddiv_rn(double a, double b) { return a / b; }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned s) {
  unsigned long long both = (unsigned long long)b << 32 | a;
  unsigned out = 0;
  for (int i = 0; i < 4; i++) out |= (unsigned)(both >> (8 * (s >> (4 * i) & 7)) & 0xff) << (8 * i);
  return out;
}

struct Fiber {
  ucontext_t context;
  char* stack;
  unsigned long long block_phase, warp_phase;
  bool done;
};
static Fiber fibers[1024];
static unsigned fiber_count, current;
static ucontext_t scheduler;
static void (*body)(const uint64_t*);
static const uint64_t* body_args;

static void yield_fiber() { swapcontext(&fibers[current].context, &scheduler); }

static void __syncthreads() {
  unsigned long long phase = ++fibers[current].block_phase;
  for (;;) {
    bool all = true;
    for (unsigned t = 0; t < fiber_count; t++) all &= fibers[t].done || fibers[t].block_phase >= phase;
    if (all) return;
    yield_fiber();
  }
}
static void warp_barrier() {
  unsigned long long phase = ++fibers[current].warp_phase;
  unsigned first = current / 32 * 32, last = first + 32 < fiber_count ? first + 32 : fiber_count;
  for (;;) {
    bool all = true;
    for (unsigned t = first; t < last; t++) all &= fibers[t].done || fibers[t].warp_phase >= phase;
    if (all) return;
    yield_fiber();
  }
}
static void __syncwarp() { warp_barrier(); }
static float exchange_slots[1024];
static float __shfl_xor_sync(unsigned, float x, int mask) {
  exchange_slots[current] = x;
  warp_barrier();
  float y = exchange_slots[current ^ (unsigned)mask];
  warp_barrier();
  return y;
}
static unsigned atomicAdd(unsigned* p, unsigned x) { unsigned old = *p; *p += x; return old; }

static void fiber_main() {
  body(body_args);
  fibers[current].done = true;
  swapcontext(&fibers[current].context, &scheduler);
}

// Runs every block of a grid.
static void run_grid(void (*kernel)(const uint64_t*), const uint64_t* args, unsigned gx, unsigned gy,
                     unsigned gz, unsigned threads) {
  const size_t stack_bytes = 128 << 10;
  body = kernel, body_args = args;
  gridDim = {gx, gy, gz}, blockDim = {threads, 1, 1};
  fiber_count = threads;
  for (unsigned t = 0; t < threads; t++)
    if (!fibers[t].stack) fibers[t].stack = (char*)malloc(stack_bytes);
  for (unsigned z = 0; z < gz; z++)
    for (unsigned y = 0; y < gy; y++)
      for (unsigned x = 0; x < gx; x++) {
        blockIdx = {x, y, z};
        for (unsigned t = 0; t < threads; t++) {
          Fiber& f = fibers[t];
          f.done = false, f.block_phase = f.warp_phase = 0;
          getcontext(&f.context);
          f.context.uc_stack.ss_sp = f.stack, f.context.uc_stack.ss_size = stack_bytes;
          f.context.uc_link = &scheduler;
          makecontext(&f.context, fiber_main, 0);
        }
        for (unsigned left = threads; left;) {
          left = 0;
          for (unsigned t = 0; t < threads; t++) {
            if (fibers[t].done) continue;
            current = t, threadIdx = {t, 0, 0};
            swapcontext(&scheduler, &fibers[t].context);
            left += !fibers[t].done;
          }
        }
      }
}
