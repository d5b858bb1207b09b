// Softmax attention with a bias per key, key and query lengths, padded or packed items, float32. One task is one
// (item, head).
#pragma once
#include <cstdint>

#include "head_tensor.h"

namespace tore_fast::cpu {

// Rows of one item: padded form start 0 in its own batch entry, packed form start cu[b] in batch entry 0.
struct ItemRows {
  const int32_t *length, *cu;  // either may be null
  int64_t size;                // rows of the tensor

  int64_t entry(int64_t b) const { return cu ? 0 : b; }
  int64_t start(int64_t b) const { return cu ? cu[b] : 0; }
  int64_t count(int64_t b) const {
    if (cu) return cu[b + 1] - cu[b];
    if (!length) return size;
    return length[b] < 0 ? 0 : length[b] > size ? size : length[b];
  }
};

struct PrunedAttentionFwd {
  HeadTensor q, k, v;
  const float* key_bias;  // [batch, keys] or null
  ItemRows queries, keys;
  float* out;  // [batch, queries, head, dim]
  float* lse;  // [batch, head, queries]
  int64_t heads, dim;
  float scale;
};

struct PrunedAttentionBwd {
  HeadTensor q, k, v, grad;
  const float* key_bias;
  const float *delta, *lse;  // [batch, head, queries]
  ItemRows queries, keys;
  float *dq, *dk, *dv;  // [batch, queries or keys, head, dim]; rows outside the items are left alone
  float* dbias;         // [batch, head, keys] or null: per head, for the caller to add up
  int64_t heads, dim;
  float scale;
};

// Floats of scratch one worker needs when no item is longer than these.
int64_t pruned_attention_fwd_scratch(int64_t max_queries, int64_t max_keys, int64_t dim);
int64_t pruned_attention_bwd_scratch(int64_t max_queries, int64_t max_keys, int64_t dim);

// Tasks [begin, end) of the flattened (item, head) range.
void pruned_attention_fwd(const PrunedAttentionFwd& p, int64_t begin, int64_t end, float* scratch);
void pruned_attention_bwd(const PrunedAttentionBwd& p, int64_t begin, int64_t end, float* scratch);
void pruned_attention_fwd_avx2(const PrunedAttentionFwd& p, int64_t begin, int64_t end, float* scratch);
void pruned_attention_bwd_avx2(const PrunedAttentionBwd& p, int64_t begin, int64_t end, float* scratch);

}  // namespace tore_fast::cpu
