// Stands in for the CUDA headers, so that g++ compiles csrc/cuda/*.cu and their kernels run on the CPU: every
// CUDA thread is a coroutine, barriers and warp operations switch between them. Blocks run one after another;
// inside a block the order of the threads is shuffled at every barrier, so a missing barrier shows up as a
// wrong result for some seed. A warp operation that not all 32 lanes reach, or a barrier that some thread
// never reaches, aborts.
#pragma once
#define TORE_FAST_EMULATED
#include <setjmp.h>
#include <ucontext.h>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
using cudaStream_t = void*;
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct float2 {
  float x, y;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

inline int64_t shared_limit = 99 * 1024;  // bytes, as cudaDeviceGetAttribute reports
inline unsigned seed = 0;
inline int launches = 0;
inline std::vector<char> dynamic_shared;

enum class State { kReady, kBlock, kWarp, kDone };

// A context starts by swapcontext; from then on _setjmp/_longjmp switch, which make no system call.
struct Thread {
  ucontext_t context;
  jmp_buf at;
  bool started;
  std::vector<char> stack;
  State state = State::kReady;
};

inline std::vector<Thread> threads;
inline jmp_buf scheduler;
inline unsigned current;
inline const std::function<void()>* body;
inline char slots[1024][32];  // values that lanes exchange

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "CUDA emulator: %s (block %u, thread %u)\n", what, blockIdx.x, current);
  std::abort();
}

inline void wait(State state) {
  threads[current].state = state;
  if (_setjmp(threads[current].at) == 0) _longjmp(scheduler, 1);
}

inline void entry() {
  (*body)();
  threads[current].state = State::kDone;
  _longjmp(scheduler, 1);
}

inline void resume(unsigned t) {
  current = t;
  threadIdx = dim3(t, 0, 0);
  if (_setjmp(scheduler) != 0) return;
  Thread& thread = threads[t];
  if (thread.started) _longjmp(thread.at, 1);
  thread.started = true;
  setcontext(&thread.context);
}

// Lets those go on whose barrier is complete; false if nobody can.
inline bool release() {
  bool any = false;
  for (size_t w = 0; w < threads.size(); w += 32) {
    const size_t end = std::min(w + 32, threads.size());
    size_t waiting = 0;
    for (size_t t = w; t < end; ++t) waiting += threads[t].state == State::kWarp;
    if (waiting != 32) continue;
    for (size_t t = w; t < end; ++t) threads[t].state = State::kReady;
    any = true;
  }
  if (any) return true;
  for (const Thread& t : threads)
    if (t.state != State::kBlock && t.state != State::kDone) return false;
  for (Thread& t : threads)
    if (t.state == State::kBlock) t.state = State::kReady, any = true;
  return any;
}

inline void run_block(const std::function<void()>& kernel, std::mt19937& random) {
  body = &kernel;
  std::fill(dynamic_shared.begin(), dynamic_shared.end(), char(0xff));  // NaN
  std::vector<unsigned> order(threads.size());
  for (unsigned t = 0; t < threads.size(); ++t) {
    order[t] = t;
    Thread& thread = threads[t];
    thread.stack.resize(64 * 1024);
    thread.state = State::kReady;
    thread.started = false;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.data();
    thread.context.uc_stack.ss_size = thread.stack.size();
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, entry, 0);
  }
  for (;;) {
    std::shuffle(order.begin(), order.end(), random);
    for (unsigned t : order)
      if (threads[t].state == State::kReady) resume(t);
    bool done = true;
    for (const Thread& t : threads) done &= t.state == State::kDone;
    if (done) return;
    if (!release()) fail("threads wait for each other at different barriers");
  }
}

template <typename Kernel, typename... Args>
void launch(Kernel kernel, dim3 grid, unsigned block, int64_t bytes, const Args&... args) {
  if (block == 0 || block > 1024 || bytes > shared_limit) fail("bad launch");
  ++launches;
  gridDim = grid;
  blockDim = dim3(block);
  threads.resize(block);
  dynamic_shared.resize(bytes + 16);
  std::mt19937 random(seed);
  for (unsigned b = 0; b < grid.x; ++b) {
    blockIdx = dim3(b, 0, 0);
    run_block([&] { kernel(args...); }, random);
  }
}

inline void* dynamic() {
  return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(dynamic_shared.data()) + 15) & ~uintptr_t(15));
}

// Every lane puts `value` in, gets what `pick` makes of the warp's 32 values.
template <typename T, typename Pick>
auto exchange(unsigned mask, T value, Pick pick) {
  if (mask != 0xffffffffu) fail("only full-mask warp operations are emulated");
  const unsigned warp = current / 32 * 32, lane = current % 32;
  static_assert(sizeof(T) <= 32);
  std::memcpy(slots[current], &value, sizeof value);
  wait(State::kWarp);
  T all[32];
  for (unsigned l = 0; l < 32; ++l) std::memcpy(&all[l], slots[warp + l], sizeof(T));
  const auto result = pick(all, lane);
  wait(State::kWarp);
  return result;
}

}  // namespace emulator

#define TF_LAUNCH(kernel, grid, threads, bytes, stream, ...) \
  ::emulator::launch(kernel, grid, threads, bytes, __VA_ARGS__)
#define TF_DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(::emulator::dynamic())

inline void __syncthreads() { emulator::wait(emulator::State::kBlock); }
inline void __syncwarp() { emulator::wait(emulator::State::kWarp); }
template <typename T>
T __shfl_xor_sync(unsigned mask, T v, int step) {
  return emulator::exchange(mask, v, [&](const T* all, unsigned lane) { return all[lane ^ unsigned(step)]; });
}
template <typename T>
T __shfl_up_sync(unsigned mask, T v, int step) {
  return emulator::exchange(mask, v, [&](const T* all, unsigned lane) {
    return all[int(lane) < step ? lane : lane - unsigned(step)];
  });
}
inline unsigned __match_any_sync(unsigned mask, int v) {
  return emulator::exchange(mask, v, [&](const int* all, unsigned) {
    unsigned same = 0;
    for (unsigned l = 0; l < 32; ++l) same |= unsigned(all[l] == v) << l;
    return same;
  });
}
// The two matrix instructions of csrc/cuda/pairwise_mma.cuh, from the register layouts in the PTX manual.
inline void ldmatrix_x4(uint32_t (&r)[4], const uint16_t* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16) emulator::fail("ldmatrix: row not 16-byte aligned");
  struct Result {
    uint32_t r[4];
  };
  const Result out = emulator::exchange(0xffffffffu, row, [](const uint16_t* const* rows, unsigned lane) {
    Result result;
    for (unsigned m = 0; m < 4; ++m) std::memcpy(&result.r[m], rows[8 * m + lane / 4] + 2 * (lane % 4), 4);
    return result;
  });
  std::memcpy(r, out.r, sizeof r);
}
inline float half_value(uint32_t pair, int which, bool bf16) {
  const uint16_t bits = uint16_t(which ? pair >> 16 : pair);
  if (bf16) {
    const unsigned wide = unsigned(bits) << 16;
    float f;
    std::memcpy(&f, &wide, sizeof f);
    return f;
  }
  _Float16 h;
  std::memcpy(&h, &bits, sizeof h);
  return float(h);
}
inline void mma_16816(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bool bf16) {
  struct Fragments {
    uint32_t a[4], b[2];
  };
  struct Sum {
    float c[4];
  };
  const Fragments mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  const Sum sum = emulator::exchange(0xffffffffu, mine, [&](const Fragments* all, unsigned lane) {
    Sum s;
    for (unsigned e = 0; e < 4; ++e) {
      const unsigned row = lane / 4 + 8 * (e / 2), column = 2 * (lane % 4) + e % 2;
      s.c[e] = c[e];
      for (unsigned k = 0; k < 16; ++k) {
        const Fragments &fa = all[row % 8 * 4 + k % 8 / 2], &fb = all[column * 4 + k % 8 / 2];
        s.c[e] += half_value(fa.a[row / 8 + 2 * (k / 8)], k % 2, bf16) * half_value(fb.b[k / 8], k % 2, bf16);
      }
    }
    return s;
  });
  std::memcpy(c, sum.c, sizeof c);
}
inline unsigned __ballot_sync(unsigned mask, bool v) {
  return emulator::exchange(mask, int(v), [&](const int* all, unsigned) {
    unsigned set = 0;
    for (unsigned l = 0; l < 32; ++l) set |= unsigned(all[l]) << l;
    return set;
  });
}
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int atomicAdd(int* at, int v) {
  const int old = *at;
  *at += v;
  return old;
}
inline unsigned long long atomicMin(unsigned long long* at, unsigned long long v) {
  const unsigned long long old = *at;
  *at = std::min(old, v);
  return old;
}

inline unsigned __float_as_uint(float v) {
  unsigned u;
  std::memcpy(&u, &v, sizeof u);
  return u;
}
inline float __uint_as_float(unsigned v) {
  float f;
  std::memcpy(&f, &v, sizeof f);
  return f;
}
inline int __popc(unsigned v) { return __builtin_popcount(v); }
template <typename T>
T min(T a, T b) {
  return a < b ? a : b;
}
template <typename T>
T max(T a, T b) {
  return a > b ? a : b;
}

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t) {
  std::memset(at, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = int(emulator::shared_limit);
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int bytes) {
  return bytes <= emulator::shared_limit ? cudaSuccess : cudaErrorInvalidValue;
}
