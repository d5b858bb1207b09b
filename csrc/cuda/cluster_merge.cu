#include "cluster_merge.cuh"

namespace tore_fast::cuda {

cudaError_t group_by_id(const int64_t* id, int64_t batch, int64_t count, int64_t groups, int32_t* row_ptr,
                        int32_t* items, cudaStream_t stream) {
  if (batch == 0) return cudaSuccess;
  if (groups > kMaxGroups) return cudaErrorInvalidValue;
  int warps = kGroupThreads / 32;
  while (warps > 1 && warps * groups * int64_t(sizeof(int32_t)) > 32 * 1024) warps /= 2;
  const int bytes = warps * int(groups) * int(sizeof(int32_t));
  const cudaError_t e = allow_shared(group_by_id_kernel, bytes);
  if (e != cudaSuccess) return e;
  TF_LAUNCH(group_by_id_kernel, unsigned(batch), kGroupThreads, bytes, stream, id, count, int(groups), warps,
            row_ptr, items);
  return cudaGetLastError();
}

cudaError_t cluster_merge(const ClusterMergeParams& p, DType dtype, cudaStream_t stream) {
  if (p.batch == 0) return cudaSuccess;
  const cudaError_t e = group_by_id(p.cluster, p.batch, p.tokens, p.clusters, p.row_ptr, p.items, stream);
  if (e != cudaSuccess) return e;
  if (!p.all_inside)
    TF_LAUNCH(cluster_merge_outside_kernel, unsigned(cdiv(p.batch * p.tokens, kGroupThreads)), kGroupThreads, 0,
              stream, p);
  by_dtype(dtype, [&](auto tag) {
    const unsigned blocks = unsigned(cdiv(p.batch * p.clusters, kMergeWarps));
    TF_LAUNCH((cluster_merge_fwd_kernel<decltype(tag)>), blocks, kMergeThreads, 0, stream, p);
    return cudaSuccess;
  });
  if (p.cells > 0)
    TF_LAUNCH(cluster_merge_cells_kernel, unsigned(cdiv(p.batch * p.cells, kGroupThreads)), kGroupThreads, 0,
              stream, p);
  return cudaGetLastError();
}

cudaError_t cluster_merge_backward(const ClusterMergeBackwardParams& p, DType dtype, cudaStream_t stream) {
  if (p.batch == 0) return cudaSuccess;
  return by_dtype(dtype, [&](auto tag) {
    const unsigned blocks = unsigned(cdiv(p.batch * p.tokens, kMergeWarps));
    TF_LAUNCH((cluster_merge_bwd_kernel<decltype(tag)>), blocks, kMergeThreads, 0, stream, p);
    return cudaGetLastError();
  });
}

}  // namespace tore_fast::cuda
