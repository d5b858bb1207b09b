#include "clustering.h"

namespace tore_fast {
namespace {

using torch::stable::new_empty;

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> dpc_knn_cluster_cuda(
    const Tensor& x_in, int64_t num_clusters, int64_t k, const std::optional<Tensor>& mask_in,
    const std::optional<Tensor>& exclude_in, const std::optional<Tensor>& noise_in, bool strict,
    bool by_index, int64_t masked) {
  const Tensor x = checked_tokens(x_in, k, "dpc_knn_cluster: x");
  const OptionalInput<uint8_t> mask(mask_in, ScalarType::Bool, x, "dpc_knn_cluster: mask");
  const OptionalInput<uint8_t> exclude(exclude_in, ScalarType::Bool, x, "dpc_knn_cluster: exclude");
  const OptionalInput<float> noise(noise_in, ScalarType::Float, x, "dpc_knn_cluster: noise");
  const int device = x.get_device_index();
  DeviceGuard guard(device);
  const cuda::TokensParams t = tokens_of(x, mask, "dpc_knn_cluster: x");
  STD_TORCH_CHECK(num_clusters >= 1 && num_clusters <= t.tokens,
                  "dpc_knn_cluster: num_clusters must be in 1..N");
  Tensor centers = new_empty(x, {t.batch, num_clusters}, ScalarType::Long);
  Tensor cluster = new_empty(x, {t.batch, t.tokens}, ScalarType::Long);
  Tensor rho = new_empty(x, {t.batch, t.tokens}, ScalarType::Float);
  Tensor delta = new_empty(x, {t.batch, t.tokens}, ScalarType::Float);
  Tensor score = new_empty(x, {t.batch, t.tokens}, ScalarType::Float);
  cuda::DpcParams p{t,
                    exclude.data,
                    noise.data,
                    int(k),
                    int(num_clusters),
                    int(masked),
                    strict,
                    by_index,
                    centers.mutable_data_ptr<int64_t>(),
                    cluster.mutable_data_ptr<int64_t>(),
                    rho.mutable_data_ptr<float>(),
                    delta.mutable_data_ptr<float>(),
                    score.mutable_data_ptr<float>(),
                    nullptr,
                    nullptr,
                    nullptr,
                    nullptr};
  std::optional<Tensor> top, ranks, norm;
  if (!cuda::dpc_one_launch(t, device)) {
    norm = norm_workspace(x, p.t);
    top = new_empty(x, {cuda::top_size(t.batch, t.tokens)}, ScalarType::Float);
    ranks = new_empty(x, {t.batch * (t.tokens + 2 * num_clusters)}, ScalarType::Int);
    p.top = top->mutable_data_ptr<float>();
    p.rank = ranks->mutable_data_ptr<int32_t>();
    p.ranked = p.rank + t.batch * t.tokens;
    p.place = p.ranked + t.batch * num_clusters;
  }
  STD_CUDA_CHECK(cuda::dpc_knn_cluster(p, device, current_stream(x)));
  return {centers, cluster, rho, delta, score};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tore_fast, CUDA, m) { m.impl("dpc_knn_cluster", TORCH_BOX(&dpc_knn_cluster_cuda)); }

}  // namespace tore_fast
