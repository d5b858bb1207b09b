#include "bipartite_match.cuh"

namespace tore_fast::cuda {

cudaError_t bipartite_match(const BipartiteMatchParams& p, DType dtype, cudaStream_t stream) {
  const int num_a = p.parity ? p.tokens / 2 : p.tokens - p.tokens / 2;
  if (p.batch == 0 || num_a == 0) return cudaSuccess;
  if (p.tokens > kMatchMaxTokens) return cudaErrorInvalidValue;
  const cudaError_t e = by_dtype(dtype, [&](auto tag) {
    const unsigned blocks = unsigned(p.batch * cdiv(num_a, kMatchTile));
    TF_LAUNCH((bipartite_match_fwd_kernel<decltype(tag)>), blocks, kMatchThreads, 0, stream, p);
    return cudaGetLastError();
  });
  if (e != cudaSuccess) return e;
  const int bytes = num_a * 2 * int(sizeof(float));  // at most 16 KB
  TF_LAUNCH(bipartite_rank_kernel, unsigned(p.batch), kMatchThreads, bytes, stream, p);
  return cudaGetLastError();
}

cudaError_t bipartite_merge(const BipartiteMergeParams& p, DType dtype, cudaStream_t stream) {
  if (p.batch * p.rows == 0 || p.channels == 0) return cudaSuccess;
  return by_dtype(dtype, [&](auto tag) {
    const unsigned blocks = unsigned(cdiv(p.batch * p.rows, kMergeRowThreads / 32));
    TF_LAUNCH((bipartite_merge_fwd_kernel<decltype(tag)>), blocks, kMergeRowThreads, 0, stream, p);
    return cudaGetLastError();
  });
}

}  // namespace tore_fast::cuda
