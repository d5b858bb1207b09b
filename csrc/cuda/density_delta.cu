#include "density_delta.cuh"

namespace tore_fast::cuda {

cudaError_t density_delta(const DeltaParams& p, cudaStream_t stream) {
  const int64_t blocks = p.t.batch * cdiv(p.t.tokens, kTile);
  if (blocks == 0) return cudaSuccess;
  TF_LAUNCH(density_delta_fwd_kernel, unsigned(blocks), kTileThreads, 0, stream, p);
  if (!p.top_known) TF_LAUNCH(density_delta_fill_kernel, unsigned(p.t.batch), kTileThreads, 0, stream, p);
  return cudaGetLastError();
}

}  // namespace tore_fast::cuda
