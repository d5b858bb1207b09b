#include "token_map.cuh"

namespace tore_fast::cuda {
namespace {

template <typename T, int kPack, int kPacks, int kLanes>
cudaError_t launch(const TokenMapParams& p, cudaStream_t stream) {
  const int64_t rows = p.batch * p.num_dst;
  TF_LAUNCH((token_map_fwd_kernel<T, kPack, kPacks, kLanes>), unsigned(cdiv(rows, kMapThreads / kLanes)), kMapThreads, 0,
            stream, p);
  return cudaGetLastError();
}

// As few lanes a row as its packs keep busy, then as many packs a lane as the row fills.
template <typename T>
cudaError_t launch_packed(const TokenMapParams& p, cudaStream_t stream) {
  constexpr int kPack = 16 / sizeof(T);
  const int64_t packs = p.channels / kPack;
  if (packs <= 8) return launch<T, kPack, 1, 8>(p, stream);
  if (packs <= 16) return launch<T, kPack, 1, 16>(p, stream);
  if (packs <= 32) return launch<T, kPack, 1, 32>(p, stream);
  if (packs <= 64) return launch<T, kPack, 2, 32>(p, stream);
  return launch<T, kPack, 4, 32>(p, stream);
}

bool aligned16(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

}  // namespace

cudaError_t token_map(const TokenMapParams& p, DType dtype, cudaStream_t stream) {
  if (p.batch * p.num_dst == 0) return cudaSuccess;
  return by_dtype(dtype, [&](auto tag) {
    using T = decltype(tag);
    const bool packed = p.channels % (16 / sizeof(T)) == 0 && aligned16(p.x) && aligned16(p.out);
    return packed ? launch_packed<T>(p, stream) : launch<T, 1, 4, 32>(p, stream);
  });
}

}  // namespace tore_fast::cuda
