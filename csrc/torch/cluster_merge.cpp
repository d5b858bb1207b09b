#include "../cpu/cluster_merge.h"

#include "clustering.h"

namespace tore_fast {
namespace {

using torch::stable::new_empty;

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> cluster_merge_cpu(
    const Tensor& x_in, const Tensor& cluster_in, int64_t clusters, const std::optional<Tensor>& weight_in,
    const std::optional<Tensor>& idx_token_in, const std::optional<Tensor>& agg_weight_in) {
  const ClusterMergeArgs a(x_in, cluster_in, clusters, weight_in, idx_token_in, agg_weight_in);
  STD_TORCH_CHECK(a.x.scalar_type() == ScalarType::Float, "cluster_merge: x must be float32");
  const int64_t batch = a.batch, tokens = a.tokens, channels = a.channels, cells = a.cells.count;
  Tensor merged = empty_floats(a.x, {batch, clusters, channels});
  Tensor norm_weight = new_empty(a.x, {batch, tokens});
  Tensor total = new_empty(a.x, {batch, clusters});
  Tensor new_idx_token = new_empty(a.x, {batch, cells}, ScalarType::Long);
  Tensor new_agg_weight = new_empty(a.x, {batch, cells});
  const cpu::ClusterMergeParams p{a.x.const_data_ptr<float>(),
                                  a.cluster.data,
                                  a.weight.data,
                                  batch,
                                  tokens,
                                  clusters,
                                  channels,
                                  merged.mutable_data_ptr<float>(),
                                  norm_weight.mutable_data_ptr<float>(),
                                  total.mutable_data_ptr<float>(),
                                  cells,
                                  data_or_null<int64_t>(a.cells.idx_token),
                                  data_or_null<float>(a.cells.agg_weight),
                                  new_idx_token.mutable_data_ptr<int64_t>(),
                                  new_agg_weight.mutable_data_ptr<float>()};
  cpu::cluster_merge(p, thread_pool());
  return {merged, norm_weight, total, new_idx_token, new_agg_weight};
}

std::tuple<Tensor, Tensor> cluster_merge_backward_cpu(const Tensor& grad_in, const Tensor& x_in,
                                                      const Tensor& cluster_in, const Tensor& norm_weight_in,
                                                      const Tensor& total_in, const Tensor& merged_in) {
  const ClusterMergeGradArgs a(grad_in, x_in, cluster_in, norm_weight_in, total_in, merged_in);
  STD_TORCH_CHECK(a.x.scalar_type() == ScalarType::Float, "cluster_merge_backward: x must be float32");
  const int64_t batch = a.batch, tokens = a.tokens, channels = a.channels, clusters = a.clusters;
  Tensor grad_x = empty_floats(a.x, {batch, tokens, channels});
  Tensor grad_weight = new_empty(a.x, {batch, tokens});
  const cpu::ClusterMergeBackwardParams p{a.grad.const_data_ptr<float>(),
                                          a.x.const_data_ptr<float>(),
                                          a.cluster.data,
                                          a.norm_weight.data,
                                          a.total.const_data_ptr<float>(),
                                          a.merged.const_data_ptr<float>(),
                                          batch,
                                          tokens,
                                          clusters,
                                          channels,
                                          grad_x.mutable_data_ptr<float>(),
                                          grad_weight.mutable_data_ptr<float>()};
  torch::stable::parallel_for(0, batch * tokens, 256, [&](int64_t begin, int64_t end) {
    cpu::cluster_merge_backward(p, begin, end);
  });
  return {grad_x, grad_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tore_fast, CPU, m) {
  m.impl("cluster_merge", TORCH_BOX(&cluster_merge_cpu));
  m.impl("cluster_merge_backward", TORCH_BOX(&cluster_merge_backward_cpu));
}

}  // namespace tore_fast
