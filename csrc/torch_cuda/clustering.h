// Tensors of the clustering ops as csrc/cuda/clustering.h wants them.
#pragma once
#include "../cuda/clustering.h"
#include "../torch/clustering_args.h"
#include "stable_cuda.h"

#include <utility>

namespace tore_fast {

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
  Tensor norm = make_tensor(x, {t.batch, t.tokens}, ScalarType::Float);
  t.norm = norm.mutable_data_ptr<float>();
  return norm;
}

// Workspace of the float32 filter, empty where it is not used; must outlive the launch.
struct FilterWorkspace {
  std::optional<Tensor> x, words;
  cuda::DensityFilter filter{};

  FilterWorkspace(const Tensor& like, const cuda::TokensParams& t, int64_t k) {
    if (t.batch * t.tokens == 0 || !cuda::density_uses_filter(t, k)) return;
    const int64_t channels = cuda::filter_channels(t.channels), all = t.batch * t.tokens;
    x = make_tensor(like, {all * channels}, ScalarType::Half);
    words = make_tensor(like, {cuda::filter_words(t.batch, t.tokens)}, ScalarType::Int);
    int32_t* at = words->mutable_data_ptr<int32_t>();
    const auto take = [&](int64_t count) { return std::exchange(at, at + count); };
    const auto floats = [&](int64_t count) { return reinterpret_cast<float*>(take(count)); };
    filter.x = x->mutable_data_ptr();
    filter.channels = int(channels);
    filter.near = floats(all * cuda::kFilterNear);
    filter.near_id = take(all * cuda::kFilterNear);
    filter.norm = floats(all);
    filter.error = floats(all);
    filter.row_top = floats(all);
    filter.open = take(all);
    filter.top = floats(cuda::top_size(t.batch, t.tokens));
    filter.bounds = reinterpret_cast<unsigned*>(take(2 * t.batch));
    filter.open_count = take(t.batch);
  }
};

// The results of dpc_knn_cluster.
struct DpcOutputs {
  Tensor centers, cluster, rho, delta, score;

  DpcOutputs(const Tensor& x, const cuda::TokensParams& t, int64_t clusters)
      : centers(make_tensor(x, {t.batch, clusters}, ScalarType::Long)),
        cluster(make_tensor(x, {t.batch, t.tokens}, ScalarType::Long)),
        rho(make_tensor(x, {t.batch, t.tokens}, ScalarType::Float)),
        delta(make_tensor(x, {t.batch, t.tokens}, ScalarType::Float)),
        score(make_tensor(x, {t.batch, t.tokens}, ScalarType::Float)) {}
};

// What the streaming path of dpc_knn_cluster needs; must outlive the launch. Nothing for the one-launch path.
struct DpcWorkspace {
  cuda::TokensParams t;
  int64_t clusters;
  bool one_launch;
  std::optional<Tensor> norm, top, ranks, near, ids;
  std::optional<FilterWorkspace> filter;

  DpcWorkspace(const Tensor& x, const cuda::TokensParams& tokens, int64_t clusters, int64_t k)
      : t(tokens), clusters(clusters), one_launch(cuda::dpc_one_launch(t)) {
    if (one_launch) return;
    norm = norm_workspace(x, t);
    filter.emplace(x, t, k);
    top = make_tensor(x, {cuda::top_size(t.batch, t.tokens)}, ScalarType::Float);
    ranks = make_tensor(x, {t.batch * (t.tokens + 2 * clusters)}, ScalarType::Int);
    if (!cuda::uses_lists(t.mask, k)) return;
    near = make_tensor(x, {t.batch * t.tokens * k}, ScalarType::Float);
    ids = make_tensor(x, {t.batch * (t.tokens * (k + 1) + 2)}, ScalarType::Int);
  }

  cuda::NearLists lists(int64_t k) const {
    if (!near) return {};
    int32_t* id = ids->mutable_data_ptr<int32_t>();
    int32_t* open = id + t.batch * t.tokens * k;
    return {near->mutable_data_ptr<float>(), id, open, open + t.batch * t.tokens};
  }
};

inline cuda::DpcParams dpc_params(const DpcOutputs& out, const DpcWorkspace& work,
                                  const DpcOptions& o, int64_t k, int64_t masked, bool strict, bool by_index) {
  cuda::DpcParams p{work.t,
                    o.exclude.data,
                    o.noise.data,
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
                    work.lists(k),
                    {}};
  if (work.one_launch) return p;
  p.filter = work.filter->filter;
  p.top = work.top->mutable_data_ptr<float>();
  p.rank = work.ranks->mutable_data_ptr<int32_t>();
  p.ranked = p.rank + work.t.batch * work.t.tokens;
  p.place = p.ranked + work.t.batch * work.clusters;
  return p;
}

}  // namespace tore_fast
