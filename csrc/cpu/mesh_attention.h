// Attention of `joints` dense tokens and CSR-connected vertices, float32. Token rows may have any stride; the last
// dimension is contiguous. One task is one (batch, head).
#pragma once
#include <cstdint>

#include "dropout.h"
#include "head_tensor.h"

namespace tore_fast::cpu {

struct MeshTopologyView {
  const int32_t *row_ptr, *col_idx;
  int64_t joints, vertices;
  int64_t longest_row;  // most neighbours of a vertex
};

struct MeshAttentionFwd {
  HeadTensor q, k, v;
  float* out;  // [batch, token, head, dim]
  float* lse;  // [batch, head, token]
  MeshTopologyView mesh;
  int64_t heads, dim;
  float scale;
  Dropout dropout;
};

struct MeshAttentionBwd {
  HeadTensor q, k, v, grad;
  const float *delta, *lse;  // [batch, head, token]
  float *dq, *dk, *dv;       // [batch, token, head, dim]
  MeshTopologyView mesh;
  int64_t heads, dim;
  float scale;
  Dropout dropout;
};

// Floats of scratch one worker needs.
int64_t mesh_attention_fwd_scratch(const MeshAttentionFwd& p);
int64_t mesh_attention_bwd_scratch(const MeshAttentionBwd& p);

// Tasks [begin, end) of the flattened (batch, head) range.
void mesh_attention_fwd(const MeshAttentionFwd& p, int64_t begin, int64_t end, float* scratch);
void mesh_attention_bwd(const MeshAttentionBwd& p, int64_t begin, int64_t end, float* scratch);

// The AVX2 + FMA builds of the same; only called where the processor has both.
void mesh_attention_fwd_avx2(const MeshAttentionFwd& p, int64_t begin, int64_t end, float* scratch);
void mesh_attention_bwd_avx2(const MeshAttentionBwd& p, int64_t begin, int64_t end, float* scratch);

}  // namespace tore_fast::cpu
