#include "knn_density.cuh"

namespace tore_fast::cuda {

cudaError_t token_norms(const TokensParams& t, cudaStream_t stream) {
  TF_LAUNCH(token_norm_kernel, unsigned(cdiv(t.batch * t.tokens, kTileThreads / 32)), kTileThreads, 0, stream,
            t);
  return cudaGetLastError();
}

cudaError_t knn_density(const DensityParams& p, cudaStream_t stream) {
  const int64_t tiles = cdiv(p.t.tokens, kTile), blocks = p.t.batch * tiles;
  if (blocks == 0) return cudaSuccess;
  if (p.t.norm) {
    const cudaError_t e = token_norms(p.t, stream);
    if (e != cudaSuccess) return e;
  }
  const dim3 grid{unsigned(blocks)};
  by_stage(p.t, [&](auto* tag) {
    using Stage = std::remove_pointer_t<decltype(tag)>;
    if (p.lists.d2 && p.k <= 5) {
      TF_LAUNCH((knn_density_fwd_kernel<5, true, Stage>), grid, kTileThreads, 0, stream, p);
    } else if (p.lists.d2) {
      TF_LAUNCH((knn_density_fwd_kernel<8, true, Stage>), grid, kTileThreads, 0, stream, p);
    } else if (p.k <= 2) {
      TF_LAUNCH((knn_density_fwd_kernel<2, false, Stage>), grid, kTileThreads, 0, stream, p);
    } else if (p.k <= 5) {
      TF_LAUNCH((knn_density_fwd_kernel<5, false, Stage>), grid, kTileThreads, 0, stream, p);
    } else if (p.k <= 8) {
      TF_LAUNCH((knn_density_fwd_kernel<8, false, Stage>), grid, kTileThreads, 0, stream, p);
    } else {
      TF_LAUNCH((knn_density_fwd_kernel<32, false, Stage>), grid, kTileThreads, 0, stream, p);
    }
    return cudaSuccess;
  });
  if (p.t.mask) TF_LAUNCH(knn_density_mask_kernel, unsigned(p.t.batch), kTileThreads, 0, stream, p);
  return cudaGetLastError();
}

}  // namespace tore_fast::cuda
