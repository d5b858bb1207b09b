#include "../cpu/density_delta.h"

#include "clustering.h"

namespace tore_fast {
namespace {

std::tuple<Tensor, Tensor> density_delta_cpu(const Tensor& x_in, const Tensor& rho_in,
                                             const std::optional<Tensor>& mask_in, bool strict) {
  const Tensor x = float_tokens(x_in, 1, "density_delta: x");
  const OptionalInput<float> rho(rho_in, ScalarType::Float, x, "density_delta: rho");
  const OptionalInput<uint8_t> mask(mask_in, ScalarType::Bool, x, "density_delta: mask");
  Tensor delta = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  Tensor parent = torch::stable::new_empty(x, {x.size(0), x.size(1)}, ScalarType::Long);
  cpu::density_delta(tokens_of(x, mask), rho.data, strict, delta.mutable_data_ptr<float>(),
                     parent.mutable_data_ptr<int64_t>(), thread_pool());
  return {delta, parent};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tore_fast, CPU, m) { m.impl("density_delta", TORCH_BOX(&density_delta_cpu)); }

}  // namespace tore_fast
