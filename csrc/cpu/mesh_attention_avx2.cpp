#include "mesh_attention_kernel.h"

namespace tore_fast::cpu {

void mesh_attention_fwd_avx2(const MeshAttentionFwd& p, int64_t begin, int64_t end, float* scratch) {
  for (int64_t i = begin; i < end; ++i) fwd_head(p, i / p.heads, i % p.heads, scratch);
}

void mesh_attention_bwd_avx2(const MeshAttentionBwd& p, int64_t begin, int64_t end, float* scratch) {
  for (int64_t i = begin; i < end; ++i) bwd_head(p, i / p.heads, i % p.heads, scratch);
}

}  // namespace tore_fast::cpu
