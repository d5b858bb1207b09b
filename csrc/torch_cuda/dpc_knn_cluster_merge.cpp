// dpc_knn_cluster and cluster_merge of the same tokens behind one dispatch: one launch for few tokens, see
// csrc/cuda/dpc_fused.cuh.
#include "clustering.h"

namespace tore_fast {
namespace {

using Results =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Results dpc_knn_cluster_merge_cuda(const Tensor& x_in, int64_t num_clusters, int64_t k,
                                   const std::optional<Tensor>& mask_in, const std::optional<Tensor>& exclude_in,
                                   const std::optional<Tensor>& noise_in, bool strict, bool by_index,
                                   int64_t masked, const std::optional<Tensor>& weight_in,
                                   const std::optional<Tensor>& idx_token_in,
                                   const std::optional<Tensor>& agg_weight_in) {
  DeviceGuard guard(x_in.get_device_index());
  const Tensor x = checked_tokens(x_in, k, "dpc_knn_cluster_merge: x");
  const DpcOptions o(x, num_clusters, mask_in, exclude_in, noise_in);
  const OptionalInput<float> weight(weight_in, ScalarType::Float, x, "dpc_knn_cluster_merge: weight");
  STD_TORCH_CHECK(num_clusters <= cuda::kMaxGroups, "dpc_knn_cluster_merge: num_clusters must be in 1..",
                  cuda::kMaxGroups);
  const TokenDictionary cells(idx_token_in, agg_weight_in, x);
  const cuda::TokensParams t = tokens_of(x, o.mask, "dpc_knn_cluster_merge: x");
  const DpcOutputs out(x, t, num_clusters);
  Tensor merged = make_tensor(x, {t.batch, num_clusters, t.channels});
  Tensor norm_weight = make_tensor(x, {t.batch, t.tokens}, ScalarType::Float);
  Tensor total = make_tensor(x, {t.batch, num_clusters}, ScalarType::Float);
  Tensor new_idx_token = make_tensor(x, {t.batch, cells.count}, ScalarType::Long);
  Tensor new_agg_weight = make_tensor(x, {t.batch, cells.count}, ScalarType::Float);
  const DpcWorkspace work(x, t, num_clusters, k);
  const cuda::DpcParams p = dpc_params(out, work, o, k, masked, strict, by_index);
  std::optional<Tensor> groups;
  int32_t* row_ptr = nullptr;
  if (!work.one_launch) {
    groups = make_tensor(x, {t.batch * (num_clusters + 1 + t.tokens)}, ScalarType::Int);
    row_ptr = groups->mutable_data_ptr<int32_t>();
  }
  const cuda::ClusterMergeParams m{t.x,
                                   p.cluster,
                                   weight.data,
                                   t.batch,
                                   t.tokens,
                                   num_clusters,
                                   t.channels,
                                   merged.mutable_data_ptr(),
                                   norm_weight.mutable_data_ptr<float>(),
                                   total.mutable_data_ptr<float>(),
                                   cells.count,
                                   data_or_null<int64_t>(cells.idx_token),
                                   data_or_null<float>(cells.agg_weight),
                                   new_idx_token.mutable_data_ptr<int64_t>(),
                                   new_agg_weight.mutable_data_ptr<float>(),
                                   row_ptr,
                                   row_ptr ? row_ptr + t.batch * (num_clusters + 1) : nullptr,
                                   !o.mask.data || masked >= 0};
  STD_CUDA_CHECK(cuda::dpc_knn_cluster_merge(p, m, current_stream(x)));
  return {merged,      norm_weight, total,   new_idx_token, new_agg_weight,
          out.centers, out.cluster, out.rho, out.delta,     out.score};
}

}  // namespace

TORE_FAST_CUDA_KERNELS(m) {
  m.impl("dpc_knn_cluster_merge", TORCH_BOX(&dpc_knn_cluster_merge_cuda));
}

}  // namespace tore_fast
