#include "density_delta.cuh"

namespace tore_fast::cuda {

cudaError_t density_delta(const DeltaParams& p, cudaStream_t stream) {
  const int64_t blocks = p.t.batch * cdiv(p.t.tokens, kTile);
  if (blocks == 0) return cudaSuccess;
  if (p.t.norm && !p.top_known) {  // else knn_density has made them
    const cudaError_t e = token_norms(p.t, stream);
    if (e != cudaSuccess) return e;
  }
  by_stage(p.t, [&](auto* tag) {
    using Stage = std::remove_pointer_t<decltype(tag)>;
    TF_LAUNCH((density_delta_fwd_kernel<Stage>), unsigned(blocks), kTileThreads, 0, stream, p);
    return cudaSuccess;
  });
  if (!p.top_known) TF_LAUNCH(density_delta_fill_kernel, unsigned(p.t.batch), kTileThreads, 0, stream, p);
  return cudaGetLastError();
}

}  // namespace tore_fast::cuda
