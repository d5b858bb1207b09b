#include "knn_density_filter.cuh"

namespace tore_fast::cuda {
namespace {

// Few variants: the row fragments of up to 64 channels in registers, or any number of channels.
template <int kChunks>
cudaError_t launch_filter(const DensityParams& p, cudaStream_t stream) {
  const auto kernel = knn_density_mma_kernel<kFilterNear, true, kChunks, false, true>;
  const int64_t bytes = stream_shared(p.t.channels);
  const cudaError_t e = allow_shared(kernel, bytes);
  if (e != cudaSuccess) return e;
  TF_LAUNCH(kernel, unsigned(p.t.batch * cdiv(p.t.tokens, kStreamRows)), kStreamThreads, bytes, stream, p);
  return cudaGetLastError();
}

}  // namespace

bool density_uses_filter(const TokensParams& t, int64_t k) {
  return t.dtype == DType::kFloat32 && !t.mask && k <= kFilterNear - 2 && t.tokens > 256 &&
         fits_shared(stream_shared(filter_channels(t.channels)), shared_limit());
}

cudaError_t knn_density_filtered(const DensityParams& p, cudaStream_t stream) {
  const int64_t batch = p.t.batch, tokens = p.t.tokens;
  cudaError_t e = cudaMemsetAsync(p.filter.bounds, 0, size_t(3 * batch) * 4, stream);  // and open_count
  if (e != cudaSuccess) return e;
  TF_LAUNCH(round_tokens_kernel, unsigned(cdiv(batch * tokens, kFilterThreads / 32)), kFilterThreads, 0, stream, p);
  DensityParams rounded = p;
  rounded.t.x = p.filter.x;
  rounded.t.dtype = DType::kFloat16;
  rounded.t.channels = p.filter.channels;
  rounded.t.norm = p.filter.norm;
  e = stream_width(p.filter.channels) == kMmaChunk ? launch_filter<1>(rounded, stream) : launch_filter<0>(rounded, stream);
  if (e != cudaSuccess) return e;
  const unsigned refine = unsigned(batch * cdiv(tokens, kFilterThreads / kFilterLanes));
  TF_LAUNCH(density_refine_kernel, refine, kFilterThreads, 0, stream, p);
  // enough blocks for every multiprocessor, also of a single image
  const int split = int(batch >= 66 ? 8 : min(cdiv(528, batch), tokens));
  const int64_t bytes = cdiv(p.t.channels, 4) * 16;
  e = allow_shared(density_rows_kernel, bytes);
  if (e != cudaSuccess) return e;
  TF_LAUNCH(density_rows_kernel, unsigned(batch * split), kFilterThreads, bytes, stream, p, split);
  return cudaGetLastError();
}

}  // namespace tore_fast::cuda
