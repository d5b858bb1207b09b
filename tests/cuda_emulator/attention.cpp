// The attention and matching launchers of csrc/cuda, compiled for the emulator, behind a C interface for ctypes.
#include "cuda_runtime_api.h"
//
#include "../../csrc/cuda/bipartite_match.cu"
#include "../../csrc/cuda/mesh_attention.cu"
#include "../../csrc/cuda/mesh_upsample.cu"

using namespace tore_fast::cuda;

namespace {

// [batch, heads, tokens, dim] stored as [batch, tokens, heads, dim], the layout of a projection
HeadTensor heads_of(const void* data, int64_t heads, int64_t tokens, int64_t dim) {
  return {data, tokens * heads * dim, dim, heads * dim};
}

}  // namespace

extern "C" {

void emulator_setup(unsigned seed, int64_t shared_limit) {
  emulator::seed = seed;
  emulator::shared_limit = shared_limit;
}

int emulated_mesh_attention(int dtype, int64_t batch, int64_t heads, int64_t joints, int64_t vertices, int64_t dim,
                            const void* q, const void* k, const void* v, const int32_t* row_ptr, const int32_t* col_idx,
                            const int32_t* t_row_ptr, const int32_t* t_col_idx, double scale, double dropout_p,
                            const int64_t* seed, void* out, float* lse, const void* grad, const float* delta, void* dq,
                            void* dk, void* dv) {
  MeshAttentionParams p{};
  const int64_t tokens = joints + vertices;
  p.q = heads_of(q, heads, tokens, dim);
  p.k = heads_of(k, heads, tokens, dim);
  p.v = heads_of(v, heads, tokens, dim);
  p.row_ptr = row_ptr;
  p.col_idx = col_idx;
  p.t_row_ptr = t_row_ptr;
  p.t_col_idx = t_col_idx;
  p.batch = batch;
  p.heads = int(heads);
  p.joints = int(joints);
  p.vertices = int(vertices);
  p.dim = int(dim);
  p.scale = float(scale);
  p.dropout = {dropout_p > 0 ? seed : nullptr, uint32_t(dropout_p * 4294967296.0), float(1 / (1 - dropout_p))};
  if (!grad) {
    p.out = out;
    p.lse_out = lse;
    return mesh_attention_fwd(p, DType(dtype), nullptr);
  }
  p.grad = heads_of(grad, heads, tokens, dim);
  p.lse_in = lse;
  p.delta = delta;
  p.dq = dq;
  p.dk = dk;
  p.dv = dv;
  return mesh_attention_bwd(p, DType(dtype), nullptr);
}

int emulated_bipartite_match(int dtype, const void* metric, const uint8_t* is_protected, const float* coverage,
                             int64_t batch, int64_t tokens, int64_t channels, int64_t r, int64_t parity,
                             int64_t class_token, int64_t distill_token, int64_t forced, int64_t by_index, int32_t* unm,
                             int32_t* src, int32_t* dst, float* best) {
  std::vector<int32_t> partner(batch * tokens);
  return bipartite_match({metric, is_protected, coverage, unm, src, dst, best, partner.data(), batch, int(tokens),
                          int(channels), int(r), int(parity), class_token != 0, distill_token != 0, forced != 0,
                          by_index != 0},
                         DType(dtype), nullptr);
}

int emulated_bipartite_merge(int dtype, const void* x, const int64_t* owner, const float* weight, int64_t batch,
                             int64_t tokens, int64_t rows, int64_t channels, int64_t average, void* y) {
  return bipartite_merge({x, owner, weight, y, batch, int(tokens), int(rows), int(channels), average != 0},
                         DType(dtype), nullptr);
}

int emulated_mesh_upsample(int dtype, const void* x, const int32_t* row_ptr, const int32_t* col_idx, const float* values,
                           int64_t batch, int64_t rows, int64_t cols, int64_t features, void* y) {
  return mesh_upsample({x, row_ptr, col_idx, values, y, batch, rows, cols, features}, DType(dtype), nullptr);
}

}  // extern "C"
