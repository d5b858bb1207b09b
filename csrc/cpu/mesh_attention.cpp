#include "simd.h"
#include "mesh_attention_kernel.h"

namespace tore_fast::cpu {

int64_t mesh_attention_fwd_scratch(const MeshAttentionFwd& p) { return fwd_scratch(p); }
int64_t mesh_attention_bwd_scratch(const MeshAttentionBwd& p) { return bwd_scratch(p); }

void mesh_attention_fwd(const MeshAttentionFwd& p, int64_t begin, int64_t end, float* scratch) {
  TORE_FAST_SIMD(mesh_attention_fwd, p, begin, end, scratch);
  for (int64_t i = begin; i < end; ++i) fwd_head(p, i / p.heads, i % p.heads, scratch);
}

void mesh_attention_bwd(const MeshAttentionBwd& p, int64_t begin, int64_t end, float* scratch) {
  TORE_FAST_SIMD(mesh_attention_bwd, p, begin, end, scratch);
  for (int64_t i = begin; i < end; ++i) bwd_head(p, i / p.heads, i % p.heads, scratch);
}

}  // namespace tore_fast::cpu
