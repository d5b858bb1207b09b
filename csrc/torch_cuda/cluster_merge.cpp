#include "../cuda/cluster_merge.h"

#include "clustering.h"

namespace tore_fast {
namespace {


std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> cluster_merge_cuda(
    const Tensor& x_in, const Tensor& cluster_in, int64_t clusters, const std::optional<Tensor>& weight_in,
    const std::optional<Tensor>& idx_token_in, const std::optional<Tensor>& agg_weight_in) {
  const cuda::DType dtype = dtype_of(x_in, "cluster_merge: x");
  STD_TORCH_CHECK(clusters <= cuda::kMaxGroups, "cluster_merge: num_clusters must be in 1..", cuda::kMaxGroups);
  DeviceGuard guard(x_in.get_device_index());
  const ClusterMergeArgs a(x_in, cluster_in, clusters, weight_in, idx_token_in, agg_weight_in);
  const int64_t batch = a.batch, tokens = a.tokens, channels = a.channels;
  Tensor merged = make_tensor(a.x, {batch, clusters, channels});
  Tensor norm_weight = make_tensor(a.x, {batch, tokens}, ScalarType::Float);
  Tensor total = make_tensor(a.x, {batch, clusters}, ScalarType::Float);
  Tensor new_idx_token = make_tensor(a.x, {batch, a.cells.count}, ScalarType::Long);
  Tensor new_agg_weight = make_tensor(a.x, {batch, a.cells.count}, ScalarType::Float);
  Tensor row_ptr = make_tensor(a.x, {batch, clusters + 1}, ScalarType::Int);
  Tensor items = make_tensor(a.x, {batch, tokens}, ScalarType::Int);
  const cuda::ClusterMergeParams p{a.x.const_data_ptr(),
                                   a.cluster.data,
                                   a.weight.data,
                                   batch,
                                   tokens,
                                   clusters,
                                   channels,
                                   merged.mutable_data_ptr(),
                                   norm_weight.mutable_data_ptr<float>(),
                                   total.mutable_data_ptr<float>(),
                                   a.cells.count,
                                   data_or_null<int64_t>(a.cells.idx_token),
                                   data_or_null<float>(a.cells.agg_weight),
                                   new_idx_token.mutable_data_ptr<int64_t>(),
                                   new_agg_weight.mutable_data_ptr<float>(),
                                   row_ptr.mutable_data_ptr<int32_t>(),
                                   items.mutable_data_ptr<int32_t>(),
                                   false};
  STD_CUDA_CHECK(cuda::cluster_merge(p, dtype, current_stream(a.x)));
  return {merged, norm_weight, total, new_idx_token, new_agg_weight};
}

std::tuple<Tensor, Tensor> cluster_merge_backward_cuda(const Tensor& grad_in, const Tensor& x_in,
                                                       const Tensor& cluster_in, const Tensor& norm_weight_in,
                                                       const Tensor& total_in, const Tensor& merged_in) {
  const cuda::DType dtype = dtype_of(x_in, "cluster_merge_backward: x");
  DeviceGuard guard(x_in.get_device_index());
  const ClusterMergeGradArgs a(grad_in, x_in, cluster_in, norm_weight_in, total_in, merged_in);
  const int64_t batch = a.batch, tokens = a.tokens, channels = a.channels, clusters = a.clusters;
  Tensor grad_x = make_tensor(a.x, {batch, tokens, channels});
  Tensor grad_weight = make_tensor(a.x, {batch, tokens}, ScalarType::Float);
  const cuda::ClusterMergeBackwardParams p{a.grad.const_data_ptr(),
                                           a.x.const_data_ptr(),
                                           a.cluster.data,
                                           a.norm_weight.data,
                                           a.total.const_data_ptr<float>(),
                                           a.merged.const_data_ptr(),
                                           batch,
                                           tokens,
                                           clusters,
                                           channels,
                                           grad_x.mutable_data_ptr(),
                                           grad_weight.mutable_data_ptr<float>()};
  STD_CUDA_CHECK(cuda::cluster_merge_backward(p, dtype, current_stream(a.x)));
  return {grad_x, grad_weight};
}

}  // namespace

TORE_FAST_CUDA_KERNELS(m) {
  m.impl("cluster_merge", TORCH_BOX(&cluster_merge_cuda));
  m.impl("cluster_merge_backward", TORCH_BOX(&cluster_merge_backward_cuda));
}

}  // namespace tore_fast
