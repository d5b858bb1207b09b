// Device helpers shared by the kernels: conversions, grid arithmetic, dtype switch. Torch-free.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <type_traits>

#include "common.h"

// Kernels are launched, and dynamic shared memory is declared, through these two, so that tests/cuda_emulator can run the
// same sources on a machine without a GPU (it defines its own).
#ifndef TORE_FAST_EMULATED
#define TF_LAUNCH(kernel, grid, threads, bytes, stream, ...) kernel<<<grid, threads, bytes, stream>>>(__VA_ARGS__)
#define TF_DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]
#endif

namespace tore_fast::cuda {

__host__ __device__ constexpr int64_t cdiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }
__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }

template <typename T>
__device__ __forceinline__ T from_float(float v);
template <>
__device__ __forceinline__ float from_float<float>(float v) {
  return v;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float v) {
  return __float2half_rn(v);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}

// Largest shared memory a block of the current device may have, in bytes.
inline int64_t shared_limit() {
  int device = 0, bytes = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  if (cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) return 0;
  return bytes;
}
// What a kernel may have of static shared memory beside its dynamic part.
constexpr int64_t kStaticShared = 1024;
constexpr bool fits_shared(int64_t bytes, int64_t limit) { return bytes + kStaticShared <= limit; }

// Before a launch with `bytes` of dynamic shared memory. What is set belongs to the kernel on this device and holds for all host
// threads, so it is always the device's whole limit: a thread with a smaller shape takes nothing from one with a larger shape.
template <typename Kernel>
cudaError_t allow_shared(Kernel kernel, int64_t bytes) {
  if (fits_shared(bytes, 48 * 1024)) return cudaSuccess;  // what every kernel has unasked
  const int64_t limit = shared_limit();
  if (!fits_shared(bytes, limit)) return cudaErrorInvalidValue;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(limit - kStaticShared));
}

// Calls fn(T{}) with T the C++ type of `dtype`.
template <typename Fn>
cudaError_t by_dtype(DType dtype, Fn&& fn) {
  switch (dtype) {
    case DType::kFloat32:
      return fn(float{});
    case DType::kFloat16:
      return fn(__half{});
    case DType::kBFloat16:
      return fn(__nv_bfloat16{});
  }
  return cudaErrorInvalidValue;
}

}  // namespace tore_fast::cuda
