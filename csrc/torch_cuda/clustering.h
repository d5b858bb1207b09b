// Tensors of the clustering ops as csrc/cuda/clustering.h wants them.
#pragma once
#include "../cuda/clustering.h"
#include "stable_cuda.h"

namespace tore_fast {

// A contiguous copy (or the tensor itself) that must outlive the pointer into it.
template <typename T>
struct OptionalInput {
  std::optional<Tensor> held;
  const T* data = nullptr;

  OptionalInput(const std::optional<Tensor>& t, ScalarType type, const Tensor& x, const char* what) {
    if (!t.has_value()) return;
    STD_TORCH_CHECK(t->dim() == 2 && t->size(0) == x.size(0) && t->size(1) == x.size(1), what,
                    ": must be [B, N]");
    held = checked(*t, type, 2, what);
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

inline cuda::TokensParams tokens_of(const Tensor& x, const OptionalInput<uint8_t>& mask, const char* what) {
  const cuda::DType dtype = dtype_of(x, what);
  const uintptr_t alignment = dtype == cuda::DType::kFloat32 ? 16 : 8;
  const bool vectorised =
      x.size(2) % 4 == 0 && reinterpret_cast<uintptr_t>(x.const_data_ptr()) % alignment == 0;
  return {x.const_data_ptr(), dtype, vectorised, mask.data, x.size(0), x.size(1), x.size(2), nullptr};
}

// Workspace for the norms, where the streaming kernels can use the matrix units; must outlive the launch.
inline std::optional<Tensor> norm_workspace(const Tensor& x, cuda::TokensParams& t) {
  const bool aligned = reinterpret_cast<uintptr_t>(t.x) % 16 == 0;
  if (!cuda::can_use_mma(t.dtype, aligned, t.channels)) return std::nullopt;
  Tensor norm = torch::stable::new_empty(x, {t.batch, t.tokens}, ScalarType::Float);
  t.norm = norm.mutable_data_ptr<float>();
  return norm;
}

// The results of dpc_knn_cluster.
struct DpcOutputs {
  Tensor centers, cluster, rho, delta, score;

  DpcOutputs(const Tensor& x, const cuda::TokensParams& t, int64_t clusters, const char* op)
      : centers(torch::stable::new_empty(x, {t.batch, clusters}, ScalarType::Long)),
        cluster(torch::stable::new_empty(x, {t.batch, t.tokens}, ScalarType::Long)),
        rho(torch::stable::new_empty(x, {t.batch, t.tokens}, ScalarType::Float)),
        delta(torch::stable::new_empty(x, {t.batch, t.tokens}, ScalarType::Float)),
        score(torch::stable::new_empty(x, {t.batch, t.tokens}, ScalarType::Float)) {
    STD_TORCH_CHECK(clusters >= 1 && clusters <= t.tokens, op, ": num_clusters must be in 1..N");
  }
};

// What the streaming path of dpc_knn_cluster needs; must outlive the launch. Nothing for the one-launch path.
struct DpcWorkspace {
  cuda::TokensParams t;
  int64_t clusters;
  bool one_launch;
  std::optional<Tensor> norm, top, ranks, near, ids;

  DpcWorkspace(const Tensor& x, const cuda::TokensParams& tokens, int64_t clusters, int64_t k)
      : t(tokens), clusters(clusters), one_launch(cuda::dpc_one_launch(t)) {
    if (one_launch) return;
    norm = norm_workspace(x, t);
    top = torch::stable::new_empty(x, {cuda::top_size(t.batch, t.tokens)}, ScalarType::Float);
    ranks = torch::stable::new_empty(x, {t.batch * (t.tokens + 2 * clusters)}, ScalarType::Int);
    if (!cuda::uses_lists(t.mask, k)) return;
    near = torch::stable::new_empty(x, {t.batch * t.tokens * k}, ScalarType::Float);
    ids = torch::stable::new_empty(x, {t.batch * (t.tokens * (k + 1) + 2)}, ScalarType::Int);
  }

  cuda::NearLists lists(int64_t k) const {
    if (!near) return {};
    int32_t* id = ids->mutable_data_ptr<int32_t>();
    int32_t* open = id + t.batch * t.tokens * k;
    return {near->mutable_data_ptr<float>(), id, open, open + t.batch * t.tokens};
  }
};

inline cuda::DpcParams dpc_params(const DpcOutputs& out, const DpcWorkspace& work,
                                  const OptionalInput<uint8_t>& exclude, const OptionalInput<float>& noise,
                                  int64_t k, int64_t masked, bool strict, bool by_index) {
  cuda::DpcParams p{work.t,
                    exclude.data,
                    noise.data,
                    int(k),
                    int(work.clusters),
                    int(masked),
                    strict,
                    by_index,
                    out.centers.mutable_data_ptr<int64_t>(),
                    out.cluster.mutable_data_ptr<int64_t>(),
                    out.rho.mutable_data_ptr<float>(),
                    out.delta.mutable_data_ptr<float>(),
                    out.score.mutable_data_ptr<float>(),
                    nullptr,
                    nullptr,
                    nullptr,
                    nullptr,
                    work.lists(k)};
  if (work.one_launch) return p;
  p.top = work.top->mutable_data_ptr<float>();
  p.rank = work.ranks->mutable_data_ptr<int32_t>();
  p.ranked = p.rank + work.t.batch * work.t.tokens;
  p.place = p.ranked + work.t.batch * work.clusters;
  return p;
}

// idx_token and agg_weight [B, N0] of cluster_merge, both or none.
struct TokenDictionary {
  int64_t count = 0;
  std::optional<Tensor> idx_token, agg_weight;

  TokenDictionary(const std::optional<Tensor>& idx_token_in, const std::optional<Tensor>& agg_weight_in,
                  int64_t batch, const char* op) {
    if (!idx_token_in.has_value()) return;
    STD_TORCH_CHECK(agg_weight_in.has_value(), op, ": idx_token needs agg_weight");
    idx_token = checked(*idx_token_in, ScalarType::Long, 2, op);
    agg_weight = checked(*agg_weight_in, ScalarType::Float, 2, op);
    count = idx_token->size(1);
    STD_TORCH_CHECK(
        idx_token->size(0) == batch && agg_weight->size(0) == batch && agg_weight->size(1) == count, op,
        ": idx_token and agg_weight must be [B, N0]");
  }
  const int64_t* idx_token_data() const { return idx_token ? idx_token->const_data_ptr<int64_t>() : nullptr; }
  const float* agg_weight_data() const { return agg_weight ? agg_weight->const_data_ptr<float>() : nullptr; }
};

}  // namespace tore_fast
