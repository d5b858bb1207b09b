// ToMe matching of even against odd tokens, and the segment sums of merging; see ops/bipartite_match.py.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "common.h"

namespace tore_fast::cuda {

struct BipartiteMatchParams {
  const void* metric;           // [batch, tokens, channels], contiguous
  const uint8_t* is_protected;  // [batch, tokens] or null
  const float* coverage;        // [batch, tokens] or null
  int32_t *unm, *src, *dst;     // [batch, A - r], [batch, r], [batch, r]
  float* best;                  // [batch, A]
  int32_t* partner;             // [batch, A] scratch
  int64_t batch;
  int tokens, channels, r, parity;
  bool class_token, distill_token, forced, sort_by_index;
};

struct BipartiteMergeParams {
  const void* x;         // [batch, tokens, channels], contiguous
  const int64_t* owner;  // [batch, tokens]
  const float* weight;   // [batch, tokens] or null
  void* y;               // [batch, rows, channels]
  int64_t batch;
  int tokens, rows, channels;
  bool average;
};

constexpr int kMatchMaxTokens = 4096;

cudaError_t bipartite_match(const BipartiteMatchParams& p, DType dtype, cudaStream_t stream);
cudaError_t bipartite_merge(const BipartiteMergeParams& p, DType dtype, cudaStream_t stream);

}  // namespace tore_fast::cuda
