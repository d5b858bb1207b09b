#include "../cpu/knn_density.h"

#include "clustering.h"

namespace tore_fast {
namespace {

Tensor knn_density_cpu(const Tensor& x_in, int64_t k, const std::optional<Tensor>& mask_in) {
  const Tensor x = float_tokens(x_in, k, "knn_density: x");
  const OptionalInput<uint8_t> mask(mask_in, ScalarType::Bool, x, "knn_density: mask");
  Tensor rho = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  cpu::knn_density(tokens_of(x, mask), k, rho.mutable_data_ptr<float>(), thread_pool());
  return rho;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tore_fast, CPU, m) { m.impl("knn_density", TORCH_BOX(&knn_density_cpu)); }

}  // namespace tore_fast
