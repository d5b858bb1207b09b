#include "mesh_attention_mma_bwd.cuh"

namespace tore_fast::cuda {
namespace {

template <typename T, int kDim, bool kKeys>
cudaError_t launch(const MeshAttentionParams& p, cudaStream_t stream) {
  const JointParts joint = kKeys ? joint_parts(p.joints, 2 * p.num_t_tiles, 2) : joint_parts(p.joints, p.num_tiles);
  const int64_t bytes = tile_mesh_shared(kDim, p.joints + p.vertices, joint.units());
  const cudaError_t e = allow_shared(mesh_attention_mma_bwd_kernel<T, kDim, kKeys>, bytes);
  if (e != cudaSuccess) return e;
  TF_LAUNCH((mesh_attention_mma_bwd_kernel<T, kDim, kKeys>), unsigned(p.batch * p.heads), kTileMeshThreads, bytes, stream, p);
  return cudaGetLastError();
}

// Rows of 17 to 32 numbers take the kernel for 64: every variant costs seconds of ptxas.
int kernel_dim(int dim) { return dim <= 16 ? 16 : 64; }

template <typename T, int kDim>
cudaError_t both(const MeshAttentionParams& p, cudaStream_t stream) {
  const cudaError_t e = launch<T, kDim, false>(p, stream);
  return e != cudaSuccess ? e : launch<T, kDim, true>(p, stream);
}

template <typename T>
cudaError_t by_dim(const MeshAttentionParams& p, cudaStream_t stream) {
  return kernel_dim(p.dim) == 16 ? both<T, 16>(p, stream) : both<T, 64>(p, stream);
}

}  // namespace

bool mesh_attention_bwd_tiles_fit(const MeshAttentionParams& p, DType dtype) {
  const int units = kTileMeshWarps;  // at most
  return mesh_attention_tiles(p, dtype) && whole_packs(p.grad) && (p.t_tiles || p.vertices == 0) &&
         2 * joint_parts(p.joints, 0).groups <= kTileMeshWarps &&
         fits_shared(tile_mesh_shared(kernel_dim(p.dim), p.joints + p.vertices, units), shared_limit());
}

cudaError_t mesh_attention_bwd_tiles(const MeshAttentionParams& p, DType dtype, cudaStream_t stream) {
  return dtype == DType::kFloat16 ? by_dim<__half>(p, stream) : by_dim<__nv_bfloat16>(p, stream);
}

}  // namespace tore_fast::cuda
