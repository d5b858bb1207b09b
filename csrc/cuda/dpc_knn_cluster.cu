#include "dpc_fused.cuh"
#include "dpc_lists.cuh"

namespace tore_fast::cuda {
namespace {

template <int kPasses>
cudaError_t launch_fused(const DpcParams& p, const ClusterMergeParams& m, const FusedPlan& f, int64_t bytes,
                         cudaStream_t stream) {
  const auto kernel = dpc_fused_kernel<kPasses>;
  const cudaError_t e = allow_shared(kernel, bytes);
  if (e != cudaSuccess) return e;
  TF_LAUNCH(kernel, unsigned(p.t.batch), f.threads, bytes, stream, p, m);
  return cudaGetLastError();
}

cudaError_t one_launch(const DpcParams& p, const ClusterMergeParams& m, cudaStream_t stream) {
  const FusedPlan f = fused_plan(int(p.t.tokens));
  const int64_t bytes = fused_floats(int(p.t.tokens), p.clusters) * 4;
  return f.passes == 1 ? launch_fused<1>(p, m, f, bytes, stream) : launch_fused<2>(p, m, f, bytes, stream);
}

}  // namespace

bool dpc_one_launch(const TokensParams& t) {
  if (t.mask || t.tokens > kFusedTokens) return false;
  return fits_shared(fused_floats(int(t.tokens), int(t.tokens)) * 4, shared_limit());
}

cudaError_t dpc_knn_cluster(const DpcParams& p, cudaStream_t stream) {
  if (p.t.batch == 0) return cudaSuccess;
  if (dpc_one_launch(p.t)) return one_launch(p, ClusterMergeParams{}, stream);
  const int64_t batch = p.t.batch;
  const unsigned by_token = unsigned(cdiv(batch * p.t.tokens, kListThreads));
  cudaError_t e = knn_density(DensityParams{p.t, p.noise, p.k, p.rho, p.top, p.lists, p.filter}, stream);
  if (e != cudaSuccess) return e;
  if (p.lists.open) TF_LAUNCH(dpc_listed_delta_kernel, by_token, kListThreads, 0, stream, p);
  e = density_delta(DeltaParams{p.t, p.rho, p.strict, p.top, true, p.delta, nullptr, p.score, p.exclude, p.lists.open,
                                p.lists.open_count},
                    stream);
  if (e != cudaSuccess) return e;
  TF_LAUNCH(dpc_rank_kernel, unsigned(batch * cdiv(p.t.tokens, kRankThreads)), kRankThreads, 0, stream, p);
  TF_LAUNCH(dpc_place_kernel, unsigned(batch * cdiv(p.clusters, kRankThreads)), kRankThreads, 0, stream, p);
  if (p.lists.open) TF_LAUNCH(dpc_listed_assign_kernel, by_token, kListThreads, 0, stream, p);
  return by_stage(p.t, [&](auto* tag) {
    using Stage = std::remove_pointer_t<decltype(tag)>;
    const unsigned blocks = unsigned(batch * cdiv(p.t.tokens, kTile));
    TF_LAUNCH((dpc_assign_kernel<Stage>), blocks, kTileThreads, 0, stream, p);
    return cudaGetLastError();
  });
}

cudaError_t dpc_knn_cluster_merge(const DpcParams& p, const ClusterMergeParams& m, cudaStream_t stream) {
  if (p.t.batch == 0) return cudaSuccess;
  if (dpc_one_launch(p.t)) return one_launch(p, m, stream);
  const cudaError_t e = dpc_knn_cluster(p, stream);
  return e != cudaSuccess ? e : cluster_merge(m, p.t.dtype, stream);
}

}  // namespace tore_fast::cuda
