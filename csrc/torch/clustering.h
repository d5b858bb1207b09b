// Tensors of the clustering ops as csrc/cpu/clustering.h wants them.
#pragma once
#include "../cpu/clustering.h"
#include "clustering_args.h"

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

inline cpu::Tokens tokens_of(const Tensor& x, const OptionalInput<uint8_t>& mask) {
  return {x.const_data_ptr<float>(), mask.data, x.size(0), x.size(1), x.size(2)};
}

// The CPU kernels compute in float32 and read nothing else.
inline Tensor float_tokens(const Tensor& x_in, int64_t k, const char* what) {
  STD_TORCH_CHECK(x_in.scalar_type() == ScalarType::Float, what, ": must be float32");
  return checked_tokens(x_in, k, what);
}

}  // namespace tore_fast
