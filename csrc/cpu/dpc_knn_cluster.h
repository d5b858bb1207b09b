// Density, distance to the nearest denser token, centres, nearest centre: see ops/dpc_knn_cluster.py.
// float32, contiguous.
#pragma once
#include "clustering.h"

namespace tore_fast::cpu {

struct DpcParams {
  Tokens t;
  const uint8_t* exclude;  // [batch, tokens] or nullptr
  const float* noise;      // [batch, tokens] or nullptr
  int64_t num_clusters, k, masked;
  bool strict, by_index;
  int64_t* centers;            // [batch, num_clusters]
  int64_t* cluster;            // [batch, tokens]
  float *rho, *delta, *score;  // [batch, tokens]
};

void dpc_knn_cluster(const DpcParams& p, const Parallel& parallel);

}  // namespace tore_fast::cpu
