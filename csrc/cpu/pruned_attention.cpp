#include "simd.h"
#include "pruned_attention_kernel.h"

namespace tore_fast::cpu {

// The block size shrinks as items grow: the largest item does not need the largest score block.
int64_t pruned_attention_fwd_scratch(int64_t max_queries, int64_t max_keys, int64_t dim) {
  return fwd_scratch(max_queries, max_keys, dim) + 48 * 192;
}
int64_t pruned_attention_bwd_scratch(int64_t max_queries, int64_t max_keys, int64_t dim) {
  return bwd_scratch(max_queries, max_keys, dim) + 2 * 48 * 192;
}

void pruned_attention_fwd(const PrunedAttentionFwd& p, int64_t begin, int64_t end, float* scratch) {
  TORE_FAST_SIMD(pruned_attention_fwd, p, begin, end, scratch);
  for (int64_t i = begin; i < end; ++i) fwd_item(p, i / p.heads, i % p.heads, scratch);
}

void pruned_attention_bwd(const PrunedAttentionBwd& p, int64_t begin, int64_t end, float* scratch) {
  TORE_FAST_SIMD(pruned_attention_bwd, p, begin, end, scratch);
  for (int64_t i = begin; i < end; ++i) bwd_item(p, i / p.heads, i % p.heads, scratch);
}

}  // namespace tore_fast::cpu
