// Attention of dense joint tokens and CSR-connected vertices; see ops/mesh_attention.py.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "common.h"
#include "dropout.h"

namespace tore_fast::cuda {

// [batch, head, token, dim], contiguous last dimension, strides in elements.
struct HeadTensor {
  const void* data;
  int64_t batch, head, token;
};

struct MeshAttentionParams {
  HeadTensor q, k, v, grad;                               // grad: backward only
  const float *delta, *lse_in;                            // backward only, [batch, head, token]
  const int32_t *row_ptr, *col_idx, *t_row_ptr, *t_col_idx;  // the transposed pattern: backward only
  const int32_t *tiles, *t_tiles;                         // [num_tiles, 128] of ops/_mesh_tiles.py, or null; t_tiles: backward
  int num_tiles, num_t_tiles;
  void *out, *dq, *dk, *dv;                               // [batch, token, head, dim]
  float* lse_out;                                         // forward only
  int64_t batch;
  int heads, joints, vertices, dim;
  float scale;
  Dropout dropout;
};

constexpr int kMeshMaxDim = 64;

cudaError_t mesh_attention_fwd(const MeshAttentionParams& p, DType dtype, cudaStream_t stream);
cudaError_t mesh_attention_bwd(const MeshAttentionParams& p, DType dtype, cudaStream_t stream);

// mesh_attention_mma.cu: the matrix units. Whether they can do it: 16-bit rows of whole 16-byte packs, a table of tiles, room
// for a head in shared memory.
bool mesh_attention_tiles(const MeshAttentionParams& p, DType dtype);
cudaError_t mesh_attention_fwd_tiles(const MeshAttentionParams& p, DType dtype, cudaStream_t stream);
bool mesh_attention_bwd_tiles_fit(const MeshAttentionParams& p, DType dtype);
cudaError_t mesh_attention_bwd_tiles(const MeshAttentionParams& p, DType dtype, cudaStream_t stream);

}  // namespace tore_fast::cuda
