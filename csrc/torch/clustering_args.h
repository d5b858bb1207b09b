// Checks of the clustering ops' tensors, shared by the CPU and CUDA bindings.
#pragma once
#include "stable.h"

namespace tore_fast {

// An optional [B, N] tensor beside x; contiguous, must outlive the pointer into it.
template <typename T>
struct OptionalInput {
  std::optional<Tensor> held;
  const T* data = nullptr;

  OptionalInput(const std::optional<Tensor>& t, ScalarType type, const Tensor& x, const char* what) {
    if (!t.has_value()) return;
    held = checked(t, type, 2, what, x);
    STD_TORCH_CHECK(held->size(0) == x.size(0) && held->size(1) == x.size(1), what, ": must be [B, N]");
    data = static_cast<const T*>(held->const_data_ptr());
  }
};

inline Tensor checked_tokens(const Tensor& x_in, int64_t k, const char* what) {
  const Tensor x = checked(x_in, x_in.scalar_type(), 3, what);
  STD_TORCH_CHECK(x.size(1) > 0 && x.size(2) > 0, what, ": must have tokens and channels");
  STD_TORCH_CHECK(x.size(1) < (int64_t(1) << 30) && x.size(2) < (int64_t(1) << 30), what, ": too large");
  STD_TORCH_CHECK(k >= 1 && k <= 32 && k <= x.size(1), what, ": k must be in 1..min(N, 32)");
  return x;
}

// What dpc_knn_cluster takes beside the tokens.
struct DpcOptions {
  OptionalInput<uint8_t> mask, exclude;
  OptionalInput<float> noise;

  DpcOptions(const Tensor& x, int64_t clusters, const std::optional<Tensor>& mask_in,
             const std::optional<Tensor>& exclude_in, const std::optional<Tensor>& noise_in)
      : mask(mask_in, ScalarType::Bool, x, "dpc_knn_cluster: mask"),
        exclude(exclude_in, ScalarType::Bool, x, "dpc_knn_cluster: exclude"),
        noise(noise_in, ScalarType::Float, x, "dpc_knn_cluster: noise") {
    STD_TORCH_CHECK(clusters >= 1 && clusters <= x.size(1), "dpc_knn_cluster: num_clusters must be in 1..N");
  }
};

// idx_token and agg_weight [B, N0], both or none.
struct TokenDictionary {
  int64_t count = 0;
  std::optional<Tensor> idx_token, agg_weight;

  TokenDictionary(const std::optional<Tensor>& idx_token_in, const std::optional<Tensor>& agg_weight_in, const Tensor& x) {
    if (!idx_token_in.has_value()) return;
    STD_TORCH_CHECK(agg_weight_in.has_value(), "cluster_merge: idx_token needs agg_weight");
    idx_token = checked(idx_token_in, ScalarType::Long, 2, "cluster_merge: idx_token", x);
    agg_weight = checked(agg_weight_in, ScalarType::Float, 2, "cluster_merge: agg_weight", x);
    count = idx_token->size(1);
    STD_TORCH_CHECK(
        idx_token->size(0) == x.size(0) && agg_weight->size(0) == x.size(0) && agg_weight->size(1) == count,
        "cluster_merge: idx_token and agg_weight must be [B, N0]");
  }
};

struct ClusterMergeArgs {
  Tensor x;
  OptionalInput<int64_t> cluster;
  OptionalInput<float> weight;
  TokenDictionary cells;
  int64_t batch, tokens, channels;

  ClusterMergeArgs(const Tensor& x_in, const Tensor& cluster_in, int64_t clusters, const std::optional<Tensor>& weight_in,
                   const std::optional<Tensor>& idx_token, const std::optional<Tensor>& agg_weight)
      : x(checked(x_in, x_in.scalar_type(), 3, "cluster_merge: x")),
        cluster(cluster_in, ScalarType::Long, x, "cluster_merge: cluster"),
        weight(weight_in, ScalarType::Float, x, "cluster_merge: weight"),
        cells(idx_token, agg_weight, x) {
    batch = x.size(0), tokens = x.size(1), channels = x.size(2);
    STD_TORCH_CHECK(clusters >= 1, "cluster_merge: num_clusters must be positive");
    STD_TORCH_CHECK(tokens < (int64_t(1) << 31), "cluster_merge: too many tokens");  // they are numbered in int32
  }
};

struct ClusterMergeGradArgs {
  Tensor x, grad, merged, total;
  OptionalInput<int64_t> cluster;
  OptionalInput<float> norm_weight;
  int64_t batch, tokens, channels, clusters;

  ClusterMergeGradArgs(const Tensor& grad_in, const Tensor& x_in, const Tensor& cluster_in, const Tensor& norm_weight_in,
                       const Tensor& total_in, const Tensor& merged_in)
      : x(checked(x_in, x_in.scalar_type(), 3, "cluster_merge_backward: x")),
        grad(checked(grad_in, x_in.scalar_type(), 3, "cluster_merge_backward: grad", x_in)),
        merged(checked(merged_in, x_in.scalar_type(), 3, "cluster_merge_backward: merged", x_in)),
        total(checked(total_in, ScalarType::Float, 2, "cluster_merge_backward: total", x_in)),
        cluster(cluster_in, ScalarType::Long, x, "cluster_merge_backward: cluster"),
        norm_weight(norm_weight_in, ScalarType::Float, x, "cluster_merge_backward: norm_weight") {
    batch = x.size(0), tokens = x.size(1), channels = x.size(2), clusters = total.size(1);
    for (const Tensor* t : {&grad, &merged})
      STD_TORCH_CHECK(t->size(0) == batch && t->size(1) == clusters && t->size(2) == channels && total.size(0) == batch,
                      "cluster_merge_backward: grad and merged must be [B, M, C], total [B, M]");
  }
};

}  // namespace tore_fast
