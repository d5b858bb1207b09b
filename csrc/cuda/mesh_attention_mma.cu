#include "mesh_attention_mma.cuh"

namespace tore_fast::cuda {
namespace {

int kernel_dim(int dim) { return dim <= 16 ? 16 : dim <= 32 ? 32 : 64; }

int64_t shared_bytes(const MeshAttentionParams& p) {
  return tile_mesh_shared(kernel_dim(p.dim), p.joints + p.vertices, joint_parts(p.joints, p.num_tiles).units());
}

template <typename T, int kDim>
cudaError_t launch(const MeshAttentionParams& p, cudaStream_t stream) {
  const int64_t bytes = shared_bytes(p);
  const cudaError_t e = allow_shared(mesh_attention_mma_kernel<T, kDim>, bytes);
  if (e != cudaSuccess) return e;
  TF_LAUNCH((mesh_attention_mma_kernel<T, kDim>), unsigned(p.batch * p.heads), kTileMeshThreads, bytes, stream, p);
  return cudaGetLastError();
}

template <typename T>
cudaError_t by_dim(const MeshAttentionParams& p, cudaStream_t stream) {
  if (p.dim <= 16) return launch<T, 16>(p, stream);
  if (p.dim <= 32) return launch<T, 32>(p, stream);
  return launch<T, 64>(p, stream);
}

}  // namespace

bool mesh_attention_tiles(const MeshAttentionParams& p, DType dtype) {
  return dtype != DType::kFloat32 && p.dim % 8 == 0 && p.dim <= kMeshMaxDim && (p.tiles || p.vertices == 0) &&
         joint_parts(p.joints, p.num_tiles).groups <= kTileMeshWarps && whole_packs(p.q) && whole_packs(p.k) &&
         whole_packs(p.v) && fits_shared(shared_bytes(p), shared_limit());
}

cudaError_t mesh_attention_fwd_tiles(const MeshAttentionParams& p, DType dtype, cudaStream_t stream) {
  return dtype == DType::kFloat16 ? by_dim<__half>(p, stream) : by_dim<__nv_bfloat16>(p, stream);
}

}  // namespace tore_fast::cuda
