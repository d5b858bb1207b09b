#include "mesh_attention.cuh"

namespace tore_fast::cuda {
namespace {

bool aligned(const HeadTensor& t, int64_t element) {
  return reinterpret_cast<uintptr_t>(t.data) % (4 * element) == 0 && t.batch % 4 == 0 && t.head % 4 == 0 && t.token % 4 == 0;
}

template <typename T, int kDim, MeshRole kRole>
cudaError_t launch(const MeshAttentionParams& p, cudaStream_t stream) {
  constexpr bool kBackward = kRole != MeshRole::kForward;
  const bool vec = p.dim % 4 == 0 && aligned(p.q, sizeof(T)) && aligned(p.k, sizeof(T)) && aligned(p.v, sizeof(T)) &&
                   (!kBackward || aligned(p.grad, sizeof(T)));
  const int64_t heads = p.batch * p.heads;
  if (p.vertices > 0) {
    const int64_t bytes = near_shared<kDim>(p.joints, kBackward);
    const cudaError_t e = allow_shared(mesh_attention_near_kernel<T, kDim, kRole>, bytes);
    if (e != cudaSuccess) return e;
    const unsigned blocks = unsigned(heads * cdiv(p.vertices, kMeshRows));
    TF_LAUNCH((mesh_attention_near_kernel<T, kDim, kRole>), blocks, kMeshThreads, bytes, stream, p, vec);
  }
  if (p.joints > 0) {
    const int64_t bytes = strip_shared<kDim>(p.joints, p.joints + p.vertices, kBackward);
    const cudaError_t e = allow_shared(mesh_attention_strip_kernel<T, kDim, kRole>, bytes);
    if (e != cudaSuccess) return e;
    TF_LAUNCH((mesh_attention_strip_kernel<T, kDim, kRole>), unsigned(heads), kMeshThreads, bytes, stream, p, vec);
  }
  return cudaGetLastError();
}

template <typename T, MeshRole kRole>
cudaError_t by_dim(const MeshAttentionParams& p, cudaStream_t stream) {
  if (p.dim <= 16) return launch<T, 16, kRole>(p, stream);
  if (p.dim <= 32) return launch<T, 32, kRole>(p, stream);
  return p.dim <= kMeshMaxDim ? launch<T, 64, kRole>(p, stream) : cudaErrorInvalidValue;
}

}  // namespace

cudaError_t mesh_attention_fwd(const MeshAttentionParams& p, DType dtype, cudaStream_t stream) {
  if (p.batch * p.heads == 0 || p.dim == 0) return cudaSuccess;
  if (mesh_attention_tiles(p, dtype)) return mesh_attention_fwd_tiles(p, dtype, stream);
  return by_dtype(dtype, [&](auto tag) { return by_dim<decltype(tag), MeshRole::kForward>(p, stream); });
}

cudaError_t mesh_attention_bwd(const MeshAttentionParams& p, DType dtype, cudaStream_t stream) {
  if (p.batch * p.heads == 0 || p.dim == 0) return cudaSuccess;
  if (mesh_attention_bwd_tiles_fit(p, dtype)) return mesh_attention_bwd_tiles(p, dtype, stream);
  return by_dtype(dtype, [&](auto tag) {
    const cudaError_t e = by_dim<decltype(tag), MeshRole::kQuery>(p, stream);
    return e != cudaSuccess ? e : by_dim<decltype(tag), MeshRole::kKey>(p, stream);
  });
}

}  // namespace tore_fast::cuda
