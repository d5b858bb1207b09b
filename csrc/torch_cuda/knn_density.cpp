#include "clustering.h"

namespace tore_fast {
namespace {

Tensor knn_density_cuda(const Tensor& x_in, int64_t k, const std::optional<Tensor>& mask_in) {
  DeviceGuard guard(x_in.get_device_index());
  const Tensor x = checked_tokens(x_in, k, "knn_density: x");
  const OptionalInput<uint8_t> mask(mask_in, ScalarType::Bool, x, "knn_density: mask");
  cuda::TokensParams t = tokens_of(x, mask, "knn_density: x");
  const std::optional<Tensor> norm = norm_workspace(x, t);
  Tensor rho = make_tensor(x, {t.batch, t.tokens}, ScalarType::Float);
  Tensor top = make_tensor(x, {cuda::top_size(t.batch, t.tokens)}, ScalarType::Float);
  const FilterWorkspace filter(x, t, k);
  const cuda::DensityParams p{t, nullptr, int(k), rho.mutable_data_ptr<float>(),
                              top.mutable_data_ptr<float>(), {}, filter.filter};
  STD_CUDA_CHECK(cuda::knn_density(p, current_stream(x)));
  return rho;
}

}  // namespace

TORE_FAST_CUDA_KERNELS(m) { m.impl("knn_density", TORCH_BOX(&knn_density_cuda)); }

}  // namespace tore_fast
