#include "knn_density_mma.cuh"

namespace tore_fast::cuda {

cudaError_t token_norms(const TokensParams& t, cudaStream_t stream) {
  TF_LAUNCH(token_norm_kernel, unsigned(cdiv(t.batch * t.tokens, kTileThreads / 32)), kTileThreads, 0, stream,
            t);
  return cudaGetLastError();
}

namespace {

template <int K, bool kIds, int kChunks>
cudaError_t launch_streamed(const DensityParams& p, cudaStream_t stream) {
  const unsigned blocks = unsigned(p.t.batch * cdiv(p.t.tokens, kStreamRows));
  const int64_t bytes = stream_shared(p.t.channels);
  const auto launch = [&](auto kernel) {
    const cudaError_t e = allow_shared(kernel, bytes);
    if (e != cudaSuccess) return e;
    TF_LAUNCH(kernel, blocks, kStreamThreads, bytes, stream, p);
    return cudaGetLastError();
  };
  if (p.t.dtype == DType::kBFloat16) return launch(knn_density_mma_kernel<K, kIds, kChunks, true>);
  return launch(knn_density_mma_kernel<K, kIds, kChunks, false>);
}

// Few variants of the streaming kernel, since each takes ptxas seconds: row fragments in registers only for the common k.
template <int K, bool kIds>
cudaError_t launch_density(const DensityParams& p, cudaStream_t stream) {
  const unsigned blocks = unsigned(p.t.batch * cdiv(p.t.tokens, kTile));
  if (p.t.norm) {
    if constexpr (K <= 8) {
      if (fits_shared(stream_shared(p.t.channels), shared_limit())) {
        if constexpr (K <= 5) {
          const int chunks = stream_width(p.t.channels) / kMmaChunk;
          if (chunks == 1) return launch_streamed<K, kIds, 1>(p, stream);
          if (chunks == 2) return launch_streamed<K, kIds, 2>(p, stream);
        }
        return launch_streamed<K, kIds, 0>(p, stream);
      }
    }
    TF_LAUNCH((knn_density_fwd_kernel<(K < 8 ? 8 : K), kIds, MmaStage>), blocks, kTileThreads, 0, stream, p);
  } else {
    TF_LAUNCH((knn_density_fwd_kernel<K, kIds, TileStage>), blocks, kTileThreads, 0, stream, p);
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t knn_density(const DensityParams& p, cudaStream_t stream) {
  if (p.t.batch * p.t.tokens == 0) return cudaSuccess;
  if (p.filter.x) return knn_density_filtered(p, stream);
  cudaError_t e = p.t.norm ? token_norms(p.t, stream) : cudaSuccess;
  if (e != cudaSuccess) return e;
  if (p.lists.d2) {
    e = p.k <= 5 ? launch_density<5, true>(p, stream) : launch_density<8, true>(p, stream);
  } else if (p.k <= 5) {
    e = launch_density<5, false>(p, stream);
  } else {
    e = p.k <= 8 ? launch_density<8, false>(p, stream) : launch_density<32, false>(p, stream);
  }
  if (e != cudaSuccess) return e;
  if (p.t.mask) TF_LAUNCH(knn_density_mask_kernel, unsigned(p.t.batch), kTileThreads, 0, stream, p);
  return cudaGetLastError();
}

}  // namespace tore_fast::cuda
