#include "clustering.h"

namespace tore_fast {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> dpc_knn_cluster_cuda(
    const Tensor& x_in, int64_t num_clusters, int64_t k, const std::optional<Tensor>& mask_in,
    const std::optional<Tensor>& exclude_in, const std::optional<Tensor>& noise_in, bool strict,
    bool by_index, int64_t masked) {
  DeviceGuard guard(x_in.get_device_index());
  const Tensor x = checked_tokens(x_in, k, "dpc_knn_cluster: x");
  const DpcOptions o(x, num_clusters, mask_in, exclude_in, noise_in);
  const cuda::TokensParams t = tokens_of(x, o.mask, "dpc_knn_cluster: x");
  const DpcOutputs out(x, t, num_clusters);
  const DpcWorkspace work(x, t, num_clusters, k);
  const cuda::DpcParams p = dpc_params(out, work, o, k, masked, strict, by_index);
  STD_CUDA_CHECK(cuda::dpc_knn_cluster(p, current_stream(x)));
  return {out.centers, out.cluster, out.rho, out.delta, out.score};
}

}  // namespace

TORE_FAST_CUDA_KERNELS(m) { m.impl("dpc_knn_cluster", TORCH_BOX(&dpc_knn_cluster_cuda)); }

}  // namespace tore_fast
