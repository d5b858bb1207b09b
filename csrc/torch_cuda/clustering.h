// Tensors of the clustering ops as csrc/cuda/clustering.h wants them.
#pragma once
#include "../cuda/clustering.h"
#include "stable_cuda.h"

namespace tore_fast {

// A contiguous copy (or the tensor itself) that must outlive the pointer into it.
template <typename T>
struct OptionalInput {
  std::optional<Tensor> held;
  const T* data = nullptr;

  OptionalInput(const std::optional<Tensor>& t, ScalarType type, const Tensor& x, const char* what) {
    if (!t.has_value()) return;
    STD_TORCH_CHECK(t->dim() == 2 && t->size(0) == x.size(0) && t->size(1) == x.size(1), what,
                    ": must be [B, N]");
    held = checked(*t, type, 2, what);
    data = static_cast<const T*>(held->const_data_ptr());
  }
};

inline Tensor checked_tokens(const Tensor& x_in, int64_t k, const char* what) {
  const Tensor x = checked(x_in, x_in.scalar_type(), 3, what);
  STD_TORCH_CHECK(x.size(1) > 0 && x.size(2) > 0, what, ": must have tokens and channels");
  STD_TORCH_CHECK(x.size(1) < (int64_t(1) << 30) && x.size(2) < (int64_t(1) << 30), what, ": too large");
  STD_TORCH_CHECK(k >= 1 && k <= 32 && k <= x.size(1), what, ": k must be in 1..min(N, 32)");
  return x;
}

inline cuda::TokensParams tokens_of(const Tensor& x, const OptionalInput<uint8_t>& mask, const char* what) {
  const cuda::DType dtype = dtype_of(x, what);
  const uintptr_t alignment = dtype == cuda::DType::kFloat32 ? 16 : 8;
  const bool vectorised =
      x.size(2) % 4 == 0 && reinterpret_cast<uintptr_t>(x.const_data_ptr()) % alignment == 0;
  return {x.const_data_ptr(), dtype, vectorised, mask.data, x.size(0), x.size(1), x.size(2), nullptr};
}

// Workspace for the norms, where the streaming kernels can use the matrix units; must outlive the launch.
inline std::optional<Tensor> norm_workspace(const Tensor& x, cuda::TokensParams& t) {
  const bool aligned = reinterpret_cast<uintptr_t>(t.x) % 16 == 0;
  if (!cuda::can_use_mma(t.dtype, aligned, t.channels)) return std::nullopt;
  Tensor norm = torch::stable::new_empty(x, {t.batch, t.tokens}, ScalarType::Float);
  t.norm = norm.mutable_data_ptr<float>();
  return norm;
}

}  // namespace tore_fast
