// Weighted mean of the tokens of each cluster, its gradient, and grouping by id; see ops/cluster_merge.py.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "common.h"

namespace tore_fast::cuda {

// Groups per image that group_by_id can count in shared memory on every GPU (96 KB).
constexpr int64_t kMaxGroups = 24576;

// Items 0..count-1 of each image by id, ascending inside a group: row_ptr [batch, groups + 1], items [batch,
// count]. Ids outside 0..groups-1 are in no group; the unused end of items is -1.
cudaError_t group_by_id(const int64_t* id, int64_t batch, int64_t count, int64_t groups, int32_t* row_ptr,
                        int32_t* items, cudaStream_t stream);

constexpr float kMergeEps = 1e-6f;  // added to a cluster's sum of weights (kernels.md section 4)

struct ClusterMergeParams {
  const void* x;           // [batch, tokens, channels]
  const int64_t* cluster;  // [batch, tokens]
  const float* weight;     // [batch, tokens] or nullptr (1)
  int64_t batch, tokens, clusters, channels;
  void* merged;        // [batch, clusters, channels]
  float* norm_weight;  // [batch, tokens]
  float* total;        // [batch, clusters] sum of weights + 1e-6
  int64_t cells;       // 0: no token dictionary
  const int64_t* idx_token;
  const float* agg_weight;
  int64_t* new_idx_token;
  float* new_agg_weight;
  int32_t *row_ptr, *items;  // workspace [batch, clusters + 1], [batch, tokens]
  bool all_inside;           // every token has a cluster: no look for others
};
cudaError_t cluster_merge(const ClusterMergeParams& p, DType dtype, cudaStream_t stream);

struct ClusterMergeBackwardParams {
  const void *grad, *x;    // [batch, clusters, channels], [batch, tokens, channels]
  const int64_t* cluster;  // [batch, tokens]
  const float *norm_weight, *total;
  const void* merged;
  int64_t batch, tokens, clusters, channels;
  void* grad_x;
  float* grad_weight;
};
cudaError_t cluster_merge_backward(const ClusterMergeBackwardParams& p, DType dtype, cudaStream_t stream);

}  // namespace tore_fast::cuda
