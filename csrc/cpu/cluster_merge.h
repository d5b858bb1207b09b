// Weighted mean of the tokens of each cluster and its gradient, see ops/cluster_merge.py. float32,
// contiguous.
#pragma once
#include <cstdint>

#include "clustering.h"

namespace tore_fast::cpu {

struct ClusterMergeParams {
  const float* x;          // [batch, tokens, channels]
  const int64_t* cluster;  // [batch, tokens]; ids outside 0..clusters-1 leave the token out
  const float* weight;     // [batch, tokens] or nullptr (1)
  int64_t batch, tokens, clusters, channels;
  float* merged;       // [batch, clusters, channels]
  float* norm_weight;  // [batch, tokens]
  float* total;        // [batch, clusters] sum of weights + 1e-6
  // the token dictionary; cells == 0: none
  int64_t cells;
  const int64_t* idx_token;  // [batch, cells]
  const float* agg_weight;   // [batch, cells]
  int64_t* new_idx_token;    // [batch, cells]
  float* new_agg_weight;     // [batch, cells]
};

void cluster_merge(const ClusterMergeParams& p, const Parallel& parallel);

struct ClusterMergeBackwardParams {
  const float *grad, *x;   // [batch, clusters, channels], [batch, tokens, channels]
  const int64_t* cluster;  // [batch, tokens]
  const float *norm_weight, *total, *merged;
  int64_t batch, tokens, clusters, channels;
  float *grad_x, *grad_weight;
};

// Rows [begin, end) of the flattened (batch, token) range.
void cluster_merge_backward(const ClusterMergeBackwardParams& p, int64_t begin, int64_t end);

// Items 0..count-1 of one image grouped by id (counting sort, ascending inside a group): row_ptr [groups +
// 1], items [count]. Items whose id is outside 0..groups-1 are in no group; the unused end of `items` is set
// to -1.
void group_by_id(const int64_t* id, int64_t count, int64_t groups, int32_t* row_ptr, int32_t* items);

}  // namespace tore_fast::cpu
