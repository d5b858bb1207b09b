// [B, H, N, D] float32 tensors as the CPU attention kernels see them.
#pragma once
#include "../cpu/head_tensor.h"
#include "stable.h"

namespace tore_fast {

// float32 with a contiguous last dimension (copied when it is not).
inline Tensor head_rows(const Tensor& t, const char* what) {
  STD_TORCH_CHECK(t.is_cpu(), what, ": is on ", device_name(t), ", must be on the CPU");
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float, what, ": must be float32");
  STD_TORCH_CHECK(t.dim() == 4, what, ": must be [B, H, N, D], got dim ", t.dim());
  return t.stride(3) == 1 || t.size(3) == 1 ? t : torch::stable::contiguous(t);
}

inline cpu::HeadTensor view(const Tensor& t) {
  return {t.const_data_ptr<float>(), t.stride(0), t.stride(1), t.stride(2)};
}

inline void same_size(const Tensor& a, const Tensor& b, const char* what) {
  for (int i = 0; i < 4; ++i) STD_TORCH_CHECK(a.size(i) == b.size(i), what, ": wrong shape");
}

}  // namespace tore_fast
