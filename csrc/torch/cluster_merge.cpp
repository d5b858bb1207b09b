#include "../cpu/cluster_merge.h"

#include "clustering.h"

namespace tore_fast {
namespace {

using torch::stable::new_empty;

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> cluster_merge_cpu(
    const Tensor& x_in, const Tensor& cluster_in, int64_t clusters, const std::optional<Tensor>& weight_in,
    const std::optional<Tensor>& idx_token_in, const std::optional<Tensor>& agg_weight_in) {
  const Tensor x = checked(x_in, ScalarType::Float, 3, "cluster_merge: x");
  const int64_t batch = x.size(0), tokens = x.size(1), channels = x.size(2);
  STD_TORCH_CHECK(clusters >= 1, "cluster_merge: num_clusters must be positive");
  const Optional<int64_t> cluster(cluster_in, ScalarType::Long, x, "cluster_merge: cluster");
  const Optional<float> weight(weight_in, ScalarType::Float, x, "cluster_merge: weight");
  Tensor merged = empty_floats(x, {batch, clusters, channels});
  Tensor norm_weight = new_empty(x, {batch, tokens});
  Tensor total = new_empty(x, {batch, clusters});
  const int64_t cells = idx_token_in.has_value() ? idx_token_in->size(1) : 0;
  std::optional<Tensor> idx_token, agg_weight;
  if (idx_token_in.has_value()) {
    STD_TORCH_CHECK(agg_weight_in.has_value(), "cluster_merge: idx_token needs agg_weight");
    idx_token = checked(*idx_token_in, ScalarType::Long, 2, "cluster_merge: idx_token");
    agg_weight = checked(*agg_weight_in, ScalarType::Float, 2, "cluster_merge: agg_weight");
    STD_TORCH_CHECK(
        idx_token->size(0) == batch && agg_weight->size(0) == batch && agg_weight->size(1) == cells,
        "cluster_merge: idx_token and agg_weight must be [B, N0]");
  }
  Tensor new_idx_token = new_empty(x, {batch, cells}, ScalarType::Long);
  Tensor new_agg_weight = new_empty(x, {batch, cells});
  const cpu::ClusterMergeParams p{x.const_data_ptr<float>(),
                                  cluster.data,
                                  weight.data,
                                  batch,
                                  tokens,
                                  clusters,
                                  channels,
                                  merged.mutable_data_ptr<float>(),
                                  norm_weight.mutable_data_ptr<float>(),
                                  total.mutable_data_ptr<float>(),
                                  cells,
                                  idx_token ? idx_token->const_data_ptr<int64_t>() : nullptr,
                                  agg_weight ? agg_weight->const_data_ptr<float>() : nullptr,
                                  new_idx_token.mutable_data_ptr<int64_t>(),
                                  new_agg_weight.mutable_data_ptr<float>()};
  cpu::cluster_merge(p, thread_pool());
  return {merged, norm_weight, total, new_idx_token, new_agg_weight};
}

std::tuple<Tensor, Tensor> cluster_merge_backward_cpu(const Tensor& grad_in, const Tensor& x_in,
                                                      const Tensor& cluster_in, const Tensor& norm_weight_in,
                                                      const Tensor& total_in, const Tensor& merged_in) {
  const Tensor x = checked(x_in, ScalarType::Float, 3, "cluster_merge_backward: x");
  const Tensor grad = checked(grad_in, ScalarType::Float, 3, "cluster_merge_backward: grad");
  const Tensor merged = checked(merged_in, ScalarType::Float, 3, "cluster_merge_backward: merged");
  const Tensor total = checked(total_in, ScalarType::Float, 2, "cluster_merge_backward: total");
  const Optional<int64_t> cluster(cluster_in, ScalarType::Long, x, "cluster_merge_backward: cluster");
  const Optional<float> norm_weight(norm_weight_in, ScalarType::Float, x,
                                    "cluster_merge_backward: norm_weight");
  const int64_t batch = x.size(0), tokens = x.size(1), channels = x.size(2), clusters = total.size(1);
  STD_TORCH_CHECK(total.size(0) == batch && merged.size(0) == batch && merged.size(1) == clusters &&
                      merged.size(2) == channels && grad.size(0) == batch && grad.size(1) == clusters &&
                      grad.size(2) == channels,
                  "cluster_merge_backward: grad and merged must be [B, M, C], total [B, M]");
  Tensor grad_x = empty_floats(x, {batch, tokens, channels});
  Tensor grad_weight = new_empty(x, {batch, tokens});
  const cpu::ClusterMergeBackwardParams p{grad.const_data_ptr<float>(),
                                          x.const_data_ptr<float>(),
                                          cluster.data,
                                          norm_weight.data,
                                          total.const_data_ptr<float>(),
                                          merged.const_data_ptr<float>(),
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
