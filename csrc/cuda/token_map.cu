#include "token_map.cuh"

namespace tore_fast::cuda {

cudaError_t token_map(const TokenMapParams& p, DType dtype, cudaStream_t stream) {
  const int64_t rows = p.batch * p.num_dst;
  if (rows == 0) return cudaSuccess;
  return by_dtype(dtype, [&](auto tag) {
    TF_LAUNCH((token_map_fwd_kernel<decltype(tag)>), unsigned(cdiv(rows, kMapWarps)), kMapThreads, 0, stream,
              p);
    return cudaGetLastError();
  });
}

}  // namespace tore_fast::cuda
