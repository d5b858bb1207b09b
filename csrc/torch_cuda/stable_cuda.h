// Stream, device guard and dtype for the CUDA bindings, on top of csrc/torch/stable.h.
#pragma once
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "../cuda/common.h"
#include "../torch/stable.h"

// tests/cuda_emulator compiles these bindings too; there they take CPU tensors, and have no device or stream to choose.
#ifndef TORE_FAST_EMULATED
#define TORE_FAST_CUDA_KERNELS(m) STABLE_TORCH_LIBRARY_IMPL(tore_fast, CUDA, m)
#else
#define TORE_FAST_CUDA_KERNELS(m) STABLE_TORCH_LIBRARY_IMPL(tore_fast_emulated, CPU, m)
#undef STD_CUDA_CHECK
#define STD_CUDA_CHECK(call) STD_TORCH_CHECK((call) == cudaSuccess, "CUDA emulator: a launch was refused: " #call)
#endif

namespace tore_fast {

#ifndef TORE_FAST_EMULATED
using torch::stable::accelerator::DeviceGuard;

inline cudaStream_t current_stream(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}
#else
struct DeviceGuard {
  explicit DeviceGuard(int) {}
};

inline cudaStream_t current_stream(const Tensor&) { return nullptr; }
#endif

// An uninitialised tensor on the device of `like`, for results and workspace, by the caching allocator.
inline Tensor make_tensor(const Tensor& like, const std::vector<int64_t>& sizes, std::optional<ScalarType> type = std::nullopt) {
#ifdef TORE_FAST_EMULATED
  return guarded_empty(like, sizes, type.value_or(like.scalar_type()));
#else
  return torch::stable::new_empty(like, sizes, type);
#endif
}

inline cuda::DType dtype_of(const Tensor& t, const char* what) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return cuda::DType::kFloat32;
    case ScalarType::Half:
      return cuda::DType::kFloat16;
    case ScalarType::BFloat16:
      return cuda::DType::kBFloat16;
    default:
      STD_TORCH_CHECK(false, what, ": must be float32, float16 or bfloat16");
  }
}

}  // namespace tore_fast
