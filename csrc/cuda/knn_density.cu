#include "knn_density.cuh"

namespace tore_fast::cuda {

cudaError_t knn_density(const DensityParams& p, cudaStream_t stream) {
  const int64_t tiles = cdiv(p.t.tokens, kTile), blocks = p.t.batch * tiles;
  if (blocks == 0) return cudaSuccess;
  const dim3 grid{unsigned(blocks)};
  if (p.k <= 2) {
    TF_LAUNCH((knn_density_fwd_kernel<2>), grid, kTileThreads, 0, stream, p);
  } else if (p.k <= 5) {
    TF_LAUNCH((knn_density_fwd_kernel<5>), grid, kTileThreads, 0, stream, p);
  } else if (p.k <= 8) {
    TF_LAUNCH((knn_density_fwd_kernel<8>), grid, kTileThreads, 0, stream, p);
  } else {
    TF_LAUNCH((knn_density_fwd_kernel<32>), grid, kTileThreads, 0, stream, p);
  }
  if (p.t.mask) TF_LAUNCH(knn_density_mask_kernel, unsigned(p.t.batch), kTileThreads, 0, stream, p);
  return cudaGetLastError();
}

}  // namespace tore_fast::cuda
