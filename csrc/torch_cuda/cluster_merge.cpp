#include "../cuda/cluster_merge.h"

#include "clustering.h"

namespace tore_fast {
namespace {

using torch::stable::new_empty;

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> cluster_merge_cuda(
    const Tensor& x_in, const Tensor& cluster_in, int64_t clusters, const std::optional<Tensor>& weight_in,
    const std::optional<Tensor>& idx_token_in, const std::optional<Tensor>& agg_weight_in) {
  const cuda::DType dtype = dtype_of(x_in, "cluster_merge: x");
  const Tensor x = checked(x_in, x_in.scalar_type(), 3, "cluster_merge: x");
  const int64_t batch = x.size(0), tokens = x.size(1), channels = x.size(2);
  STD_TORCH_CHECK(clusters >= 1 && clusters <= cuda::kMaxGroups, "cluster_merge: num_clusters must be in 1..",
                  cuda::kMaxGroups);
  DeviceGuard guard(x.get_device_index());
  const OptionalInput<int64_t> cluster(cluster_in, ScalarType::Long, x, "cluster_merge: cluster");
  const OptionalInput<float> weight(weight_in, ScalarType::Float, x, "cluster_merge: weight");
  const TokenDictionary cells(idx_token_in, agg_weight_in, batch, "cluster_merge");
  Tensor merged = new_empty(x, {batch, clusters, channels});
  Tensor norm_weight = new_empty(x, {batch, tokens}, ScalarType::Float);
  Tensor total = new_empty(x, {batch, clusters}, ScalarType::Float);
  Tensor new_idx_token = new_empty(x, {batch, cells.count}, ScalarType::Long);
  Tensor new_agg_weight = new_empty(x, {batch, cells.count}, ScalarType::Float);
  Tensor row_ptr = new_empty(x, {batch, clusters + 1}, ScalarType::Int);
  Tensor items = new_empty(x, {batch, tokens}, ScalarType::Int);
  const cuda::ClusterMergeParams p{x.const_data_ptr(),
                                   cluster.data,
                                   weight.data,
                                   batch,
                                   tokens,
                                   clusters,
                                   channels,
                                   merged.mutable_data_ptr(),
                                   norm_weight.mutable_data_ptr<float>(),
                                   total.mutable_data_ptr<float>(),
                                   cells.count,
                                   cells.idx_token_data(),
                                   cells.agg_weight_data(),
                                   new_idx_token.mutable_data_ptr<int64_t>(),
                                   new_agg_weight.mutable_data_ptr<float>(),
                                   row_ptr.mutable_data_ptr<int32_t>(),
                                   items.mutable_data_ptr<int32_t>(),
                                   false};
  STD_CUDA_CHECK(cuda::cluster_merge(p, dtype, current_stream(x)));
  return {merged, norm_weight, total, new_idx_token, new_agg_weight};
}

std::tuple<Tensor, Tensor> cluster_merge_backward_cuda(const Tensor& grad_in, const Tensor& x_in,
                                                       const Tensor& cluster_in, const Tensor& norm_weight_in,
                                                       const Tensor& total_in, const Tensor& merged_in) {
  const cuda::DType dtype = dtype_of(x_in, "cluster_merge_backward: x");
  const ScalarType type = x_in.scalar_type();
  const Tensor x = checked(x_in, type, 3, "cluster_merge_backward: x");
  const Tensor grad = checked(grad_in, type, 3, "cluster_merge_backward: grad");
  const Tensor merged = checked(merged_in, type, 3, "cluster_merge_backward: merged");
  const Tensor total = checked(total_in, ScalarType::Float, 2, "cluster_merge_backward: total");
  DeviceGuard guard(x.get_device_index());
  const OptionalInput<int64_t> cluster(cluster_in, ScalarType::Long, x, "cluster_merge_backward: cluster");
  const OptionalInput<float> norm_weight(norm_weight_in, ScalarType::Float, x,
                                         "cluster_merge_backward: norm_weight");
  const int64_t batch = x.size(0), tokens = x.size(1), channels = x.size(2), clusters = total.size(1);
  STD_TORCH_CHECK(total.size(0) == batch && merged.size(0) == batch && merged.size(1) == clusters &&
                      merged.size(2) == channels && grad.size(0) == batch && grad.size(1) == clusters &&
                      grad.size(2) == channels,
                  "cluster_merge_backward: grad and merged must be [B, M, C], total [B, M]");
  Tensor grad_x = new_empty(x, {batch, tokens, channels});
  Tensor grad_weight = new_empty(x, {batch, tokens}, ScalarType::Float);
  const cuda::ClusterMergeBackwardParams p{grad.const_data_ptr(),
                                           x.const_data_ptr(),
                                           cluster.data,
                                           norm_weight.data,
                                           total.const_data_ptr<float>(),
                                           merged.const_data_ptr(),
                                           batch,
                                           tokens,
                                           clusters,
                                           channels,
                                           grad_x.mutable_data_ptr(),
                                           grad_weight.mutable_data_ptr<float>()};
  STD_CUDA_CHECK(cuda::cluster_merge_backward(p, dtype, current_stream(x)));
  return {grad_x, grad_weight};
}

}  // namespace

TORE_FAST_CUDA_KERNELS(m) {
  m.impl("cluster_merge", TORCH_BOX(&cluster_merge_cuda));
  m.impl("cluster_merge_backward", TORCH_BOX(&cluster_merge_backward_cuda));
}

}  // namespace tore_fast
