#include "../cpu/dpc_knn_cluster.h"

#include "clustering.h"

namespace tore_fast {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> dpc_knn_cluster_cpu(
    const Tensor& x_in, int64_t num_clusters, int64_t k, const std::optional<Tensor>& mask_in,
    const std::optional<Tensor>& exclude_in, const std::optional<Tensor>& noise_in, bool strict,
    bool by_index, int64_t masked) {
  const Tensor x = float_tokens(x_in, k, "dpc_knn_cluster: x");
  const int64_t batch = x.size(0), tokens = x.size(1);
  const DpcOptions o(x, num_clusters, mask_in, exclude_in, noise_in);
  Tensor centers = torch::stable::new_empty(x, {batch, num_clusters}, ScalarType::Long);
  Tensor cluster = torch::stable::new_empty(x, {batch, tokens}, ScalarType::Long);
  Tensor rho = torch::stable::new_empty(x, {batch, tokens});
  Tensor delta = torch::stable::new_empty(x, {batch, tokens});
  Tensor score = torch::stable::new_empty(x, {batch, tokens});
  const cpu::DpcParams p{tokens_of(x, o.mask),
                         o.exclude.data,
                         o.noise.data,
                         num_clusters,
                         k,
                         masked,
                         strict,
                         by_index,
                         centers.mutable_data_ptr<int64_t>(),
                         cluster.mutable_data_ptr<int64_t>(),
                         rho.mutable_data_ptr<float>(),
                         delta.mutable_data_ptr<float>(),
                         score.mutable_data_ptr<float>()};
  cpu::dpc_knn_cluster(p, thread_pool());
  return {centers, cluster, rho, delta, score};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tore_fast, CPU, m) { m.impl("dpc_knn_cluster", TORCH_BOX(&dpc_knn_cluster_cpu)); }

}  // namespace tore_fast
