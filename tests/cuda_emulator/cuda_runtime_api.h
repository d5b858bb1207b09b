// Stands in for the CUDA headers, so that g++ compiles csrc/cuda/*.cu and their kernels run on the CPU (machine.h says how
// and what is refused, matrix_units.h has the tensor-core, asynchronous-copy and cluster operations).
#pragma once
#define TORE_FAST_EMULATED
#include <cmath>

#include "machine.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __shared__ static
#define __constant__ static
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __restrict__

using cudaStream_t = void*;
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin, cudaDevAttrMultiProcessorCount, cudaDevAttrComputeCapabilityMajor };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize, cudaFuncAttributeNonPortableClusterSizeAllowed };

struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) longlong2 {
  long long x, y;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

#define TF_LAUNCH(kernel, grid, threads, bytes, stream, ...) \
  static_cast<void>(::emulator::launch(kernel, grid, 1, threads, bytes, __VA_ARGS__))
#define TF_LAUNCH_CLUSTER(kernel, grid, cluster, threads, bytes, stream, ...) \
  ::emulator::launch(kernel, grid, cluster, threads, bytes, __VA_ARGS__)
#define TF_DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(::emulator::dynamic())

inline void __syncthreads() { emulator::wait(emulator::State::kBlock); }
inline void __syncwarp(unsigned = 0xffffffffu) { emulator::wait(emulator::State::kWarp); }
inline void __threadfence() {}
inline void __threadfence_block() {}

template <typename T>
T __shfl_sync(unsigned mask, T v, int from, int width = 32) {
  return emulator::exchange(mask, v, [&](const T* all, unsigned lane) {
    return all[lane / unsigned(width) * unsigned(width) + unsigned(from) % unsigned(width)];
  });
}
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
template <typename T>
T __shfl_down_sync(unsigned mask, T v, int step) {
  return emulator::exchange(mask, v, [&](const T* all, unsigned lane) {
    return all[lane + unsigned(step) > 31 ? lane : lane + unsigned(step)];
  });
}
template <typename T>
unsigned __match_any_sync(unsigned mask, T v) {
  return emulator::exchange(mask, v, [&](const T* all, unsigned lane) {
    unsigned same = 0;
    for (unsigned l = 0; l < 32; ++l) same |= unsigned(all[l] == all[lane]) << l;
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
inline int __any_sync(unsigned mask, bool v) { return __ballot_sync(mask, v) != 0; }
inline int __all_sync(unsigned mask, bool v) { return __ballot_sync(mask, v) == 0xffffffffu; }
template <typename T, typename Join>
T emulated_reduce(unsigned mask, T v, Join join) {
  return emulator::exchange(mask, v, [&](const T* all, unsigned) {
    T sum = all[0];
    for (unsigned l = 1; l < 32; ++l) sum = join(sum, all[l]);
    return sum;
  });
}
template <typename T>
T __reduce_add_sync(unsigned mask, T v) {
  return emulated_reduce(mask, v, [](T a, T b) { return a + b; });
}
template <typename T>
T __reduce_min_sync(unsigned mask, T v) {
  return emulated_reduce(mask, v, [](T a, T b) { return std::min(a, b); });
}
template <typename T>
T __reduce_max_sync(unsigned mask, T v) {
  return emulated_reduce(mask, v, [](T a, T b) { return std::max(a, b); });
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned v) {
  return emulated_reduce(mask, v, [](unsigned a, unsigned b) { return a | b; });
}
// The number of the block's threads that say so, in every thread.
inline int __syncthreads_count(int v) {
  emulator::self().slot[0] = char(v != 0);
  __syncthreads();
  int count = 0;
  const unsigned first = emulator::own_rank() * emulator::block_threads;
  for (unsigned t = first; t < first + emulator::block_threads; ++t)
    if (emulator::threads[t]->state != emulator::State::kDone) count += emulator::threads[t]->slot[0];
  __syncthreads();
  return count;
}
inline int __syncthreads_or(int v) { return __syncthreads_count(v) > 0; }
inline int __syncthreads_and(int v) { return __syncthreads_count(!v) == 0; }

inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __clz(int v) { return v ? __builtin_clz(unsigned(v)) : 32; }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
template <typename T>
T __ldg(const T* p) {
  return *p;
}

template <typename T>
T atomicAdd(T* at, T v) {
  const T old = *at;
  *at = old + v;
  return old;
}
template <typename T>
T atomicMin(T* at, T v) {
  const T old = *at;
  *at = std::min(old, v);
  return old;
}
template <typename T>
T atomicMax(T* at, T v) {
  const T old = *at;
  *at = std::max(old, v);
  return old;
}
template <typename T>
T atomicOr(T* at, T v) {
  const T old = *at;
  *at = old | v;
  return old;
}
template <typename T>
T atomicExch(T* at, T v) {
  const T old = *at;
  *at = v;
  return old;
}
template <typename T>
T atomicCAS(T* at, T expected, T v) {
  const T old = *at;
  if (old == expected) *at = v;
  return old;
}

inline unsigned __float_as_uint(float v) {
  unsigned u;
  std::memcpy(&u, &v, sizeof u);
  return u;
}
inline int __float_as_int(float v) { return int(__float_as_uint(v)); }
inline float __uint_as_float(unsigned v) {
  float f;
  std::memcpy(&f, &v, sizeof f);
  return f;
}
inline float __int_as_float(int v) { return __uint_as_float(unsigned(v)); }
template <typename T>
T min(T a, T b) {
  return a < b ? a : b;
}
template <typename T>
T max(T a, T b) {
  return a > b ? a : b;
}
inline float __expf(float v) { return std::exp(v); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float v) { return 1.f / std::sqrt(v); }

inline cudaError_t cudaGetLastError() {
  const cudaError_t error = emulator::last_error;
  emulator::last_error = cudaSuccess;
  return error;
}
inline cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t) {
  std::memset(at, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr what, int) {
  *value = what == cudaDevAttrMaxSharedMemoryPerBlockOptin ? int(emulator::shared_limit)
           : what == cudaDevAttrMultiProcessorCount        ? 132
                                                           : 9;
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel kernel, cudaFuncAttribute what, int bytes) {
  if (what != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (bytes > emulator::shared_limit) return cudaErrorInvalidValue;
  emulator::allowed_shared[reinterpret_cast<const void*>(kernel)] = bytes;
  return cudaSuccess;
}

#include "matrix_units.h"
