// One thread per output number. Rows hold 3..8 entries, so the op is bound by launch and by reading x through L2;
// neighbouring threads share a row's indices (broadcast) and read neighbouring features.
#include "common.cuh"
#include "mesh_upsample.h"

namespace tore_fast::cuda {
namespace {

constexpr int kThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kThreads) mesh_upsample_fwd_kernel(const MeshUpsampleParams p) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t per_item = p.rows * p.features;
  if (i >= p.batch * per_item) return;
  const int64_t b = i / per_item;
  const uint32_t rest = uint32_t(i - b * per_item);  // one 64-bit division is enough: an item is below 2^32 numbers
  const uint32_t r = rest / uint32_t(p.features), f = rest - r * uint32_t(p.features);
  const T* x = static_cast<const T*>(p.x) + b * p.cols * p.features + f;
  float acc = 0.f;
  for (int32_t e = p.row_ptr[r]; e < p.row_ptr[r + 1]; ++e) {
    acc = fmaf(p.values[e], to_float(x[int64_t(p.col_idx[e]) * p.features]), acc);
  }
  static_cast<T*>(p.y)[i] = from_float<T>(acc);
}

}  // namespace

cudaError_t mesh_upsample(const MeshUpsampleParams& p, DType dtype, cudaStream_t stream) {
  const int64_t total = p.batch * p.rows * p.features;
  if (total == 0) return cudaSuccess;
  return by_dtype(dtype, [&](auto tag) {
    TF_LAUNCH((mesh_upsample_fwd_kernel<decltype(tag)>), unsigned(cdiv(total, kThreads)), kThreads, 0, stream, p);
    return cudaGetLastError();
  });
}

}  // namespace tore_fast::cuda
