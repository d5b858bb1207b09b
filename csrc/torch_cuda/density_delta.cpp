#include "clustering.h"

namespace tore_fast {
namespace {

std::tuple<Tensor, Tensor> density_delta_cuda(const Tensor& x_in, const Tensor& rho_in,
                                              const std::optional<Tensor>& mask_in, bool strict) {
  DeviceGuard guard(x_in.get_device_index());
  const Tensor x = checked_tokens(x_in, 1, "density_delta: x");
  const OptionalInput<float> rho(rho_in, ScalarType::Float, x, "density_delta: rho");
  const OptionalInput<uint8_t> mask(mask_in, ScalarType::Bool, x, "density_delta: mask");
  cuda::TokensParams t = tokens_of(x, mask, "density_delta: x");
  const std::optional<Tensor> norm = norm_workspace(x, t);
  Tensor delta = make_tensor(x, {t.batch, t.tokens}, ScalarType::Float);
  Tensor parent = make_tensor(x, {t.batch, t.tokens}, ScalarType::Long);
  Tensor top = make_tensor(x, {cuda::top_size(t.batch, t.tokens)}, ScalarType::Float);
  const cuda::DeltaParams p{t,
                            rho.data,
                            strict,
                            top.mutable_data_ptr<float>(),
                            false,
                            delta.mutable_data_ptr<float>(),
                            parent.mutable_data_ptr<int64_t>(),
                            nullptr,
                            nullptr};
  STD_CUDA_CHECK(cuda::density_delta(p, current_stream(x)));
  return {delta, parent};
}

}  // namespace

TORE_FAST_CUDA_KERNELS(m) { m.impl("density_delta", TORCH_BOX(&density_delta_cuda)); }

}  // namespace tore_fast
