// Tensors of the clustering ops as csrc/cpu/clustering.h wants them.
#pragma once
#include "../cpu/clustering.h"
#include "stable.h"

namespace tore_fast {

inline cpu::Parallel thread_pool() {
  const int64_t threads = torch::stable::get_num_threads();
  return {[](int64_t count, const std::function<void(int64_t)>& task) {
            torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
              for (int64_t i = begin; i < end; ++i) task(i);
            });
          },
          threads};
}

// A contiguous copy (or the tensor itself) that must outlive the pointer into it.
template <typename T>
struct Optional {
  std::optional<Tensor> held;
  const T* data = nullptr;

  Optional(const std::optional<Tensor>& t, ScalarType type, const Tensor& x, const char* what) {
    if (!t.has_value()) return;
    STD_TORCH_CHECK(t->dim() == 2 && t->size(0) == x.size(0) && t->size(1) == x.size(1), what,
                    ": must be [B, N]");
    held = checked(*t, type, 2, what);
    data = static_cast<const T*>(held->const_data_ptr());
  }
};

inline cpu::Tokens tokens_of(const Tensor& x, const Optional<uint8_t>& mask) {
  return {x.const_data_ptr<float>(), mask.data, x.size(0), x.size(1), x.size(2)};
}

inline Tensor checked_tokens(const Tensor& x_in, int64_t k, const char* what) {
  const Tensor x = checked(x_in, ScalarType::Float, 3, what);
  STD_TORCH_CHECK(x.size(1) > 0 && x.size(2) > 0, what, ": must have tokens and channels");
  STD_TORCH_CHECK(x.size(1) < (int64_t(1) << 31) - 32, what, ": too many tokens");
  STD_TORCH_CHECK(k >= 1 && k <= 32 && k <= x.size(1), what, ": k must be in 1..min(N, 32)");
  return x;
}

}  // namespace tore_fast
