#include "pruned_attention_kernel.h"

namespace tore_fast::cpu {

void pruned_attention_fwd_avx2(const PrunedAttentionFwd& p, int64_t begin, int64_t end, float* scratch) {
  for (int64_t i = begin; i < end; ++i) fwd_item(p, i / p.heads, i % p.heads, scratch);
}

void pruned_attention_bwd_avx2(const PrunedAttentionBwd& p, int64_t begin, int64_t end, float* scratch) {
  for (int64_t i = begin; i < end; ++i) bwd_item(p, i / p.heads, i % p.heads, scratch);
}

}  // namespace tore_fast::cpu
