// Stands in for the CUDA headers, so that g++ compiles csrc/cuda/*.cu and their kernels run on the CPU: every CUDA thread
// is a coroutine, barriers and warp operations switch between them. Blocks run one after another; inside a block the order
// of the threads is shuffled at every barrier, so a missing barrier shows up as a wrong result for some seed. A warp
// operation that not all 32 lanes reach, or a barrier that some thread never reaches, aborts.
#pragma once
#define TORE_FAST_EMULATED
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __align__(n) alignas(n)
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
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

inline int64_t shared_limit = 99 * 1024;  // bytes, as cudaDeviceGetAttribute reports
inline unsigned seed = 0;
inline std::vector<char> dynamic_shared;

enum class State { kReady, kBlock, kWarp, kDone };

struct Thread {
  ucontext_t context;
  std::vector<char> stack;
  State state = State::kReady;
};

inline std::vector<Thread> threads;
inline ucontext_t scheduler;
inline unsigned current;
inline const std::function<void()>* body;
inline uint64_t slots[1024];  // values that lanes exchange

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "CUDA emulator: %s (block %u, thread %u)\n", what, blockIdx.x, current);
  std::abort();
}

inline void wait(State state) {
  threads[current].state = state;
  swapcontext(&threads[current].context, &scheduler);
}

inline void entry() {
  (*body)();
  threads[current].state = State::kDone;
  swapcontext(&threads[current].context, &scheduler);
}

inline void resume(unsigned t) {
  current = t;
  threadIdx = dim3(t, 0, 0);
  swapcontext(&scheduler, &threads[t].context);
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
  std::memcpy(&slots[current], &value, sizeof value);
  wait(State::kWarp);
  T all[32];
  for (unsigned l = 0; l < 32; ++l) std::memcpy(&all[l], &slots[warp + l], sizeof(T));
  const auto result = pick(all, lane);
  wait(State::kWarp);
  return result;
}

}  // namespace emulator

#define TF_LAUNCH(kernel, grid, threads, bytes, stream, ...) ::emulator::launch(kernel, grid, threads, bytes, __VA_ARGS__)
#define TF_DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(::emulator::dynamic())

inline void __syncthreads() { emulator::wait(emulator::State::kBlock); }
inline void __syncwarp() { emulator::wait(emulator::State::kWarp); }
template <typename T>
T __shfl_xor_sync(unsigned mask, T v, int step) {
  return emulator::exchange(mask, v, [&](const T* all, unsigned lane) { return all[lane ^ unsigned(step)]; });
}
template <typename T>
T __shfl_up_sync(unsigned mask, T v, int step) {
  return emulator::exchange(
      mask, v, [&](const T* all, unsigned lane) { return all[int(lane) < step ? lane : lane - unsigned(step)]; });
}
inline unsigned __match_any_sync(unsigned mask, int v) {
  return emulator::exchange(mask, v, [&](const int* all, unsigned) {
    unsigned same = 0;
    for (unsigned l = 0; l < 32; ++l) same |= unsigned(all[l] == v) << l;
    return same;
  });
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
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = int(emulator::shared_limit);
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int bytes) {
  return bytes <= emulator::shared_limit ? cudaSuccess : cudaErrorInvalidValue;
}
