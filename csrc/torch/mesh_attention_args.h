// Checks of mesh_attention's tensors, shared by the CPU and CUDA bindings.
#pragma once
#include "stable.h"

namespace tore_fast {

// [B, H, T, D] like `like` with a contiguous last dimension (copied when it is not).
inline Tensor head_rows_like(const Tensor& t, const Tensor& like, const char* what) {
  same_device(t, like, what);
  STD_TORCH_CHECK(t.dim() == 4 && t.scalar_type() == like.scalar_type(), what, ": must be [B, H, T, D] in q's dtype");
  for (int i = 0; i < 4; ++i) STD_TORCH_CHECK(t.size(i) == like.size(i), what, ": must have q's shape");
  return on_device(t.stride(3) == 1 || t.size(3) == 1 ? t : torch::stable::contiguous(t));
}

struct MeshAttentionArgs {
  Tensor q, k, v, row_ptr, col_idx, t_row_ptr, t_col_idx;
  std::optional<Tensor> tiles, t_tiles;  // [n, 128], the patterns for CUDA's matrix units
  std::optional<Tensor> seed;
  int64_t batch, heads, tokens, dim, joints, vertices;
  uint32_t drop_below = 0;  // a random word below it drops its pair
  float keep_scale = 1.f;

  MeshAttentionArgs(const Tensor& q_in, const Tensor& k_in, const Tensor& v_in, const Tensor& ptr, const Tensor& index,
                    const Tensor& t_ptr, const Tensor& t_index, int64_t num_joints, const std::optional<Tensor>& tiles_in,
                    const std::optional<Tensor>& t_tiles_in, double dropout_p,
                    const std::optional<Tensor>& seed_in)
      : q(head_rows_like(q_in, q_in, "mesh_attention: q")),
        k(head_rows_like(k_in, q_in, "mesh_attention: k")),
        v(head_rows_like(v_in, q_in, "mesh_attention: v")),
        row_ptr(checked(ptr, ScalarType::Int, 1, "mesh_attention: row_ptr", q_in)),
        col_idx(checked(index, ScalarType::Int, 1, "mesh_attention: col_idx", q_in)),
        t_row_ptr(checked(t_ptr, ScalarType::Int, 1, "mesh_attention: t_row_ptr", q_in)),
        t_col_idx(checked(t_index, ScalarType::Int, 1, "mesh_attention: t_col_idx", q_in)),
        tiles(checked(tiles_in, ScalarType::Int, 2, "mesh_attention: tiles", q_in)),
        t_tiles(checked(t_tiles_in, ScalarType::Int, 2, "mesh_attention: t_tiles", q_in)) {
    batch = q.size(0), heads = q.size(1), tokens = q.size(2), dim = q.size(3);
    joints = num_joints, vertices = row_ptr.size(0) - 1;
    STD_TORCH_CHECK(joints >= 0 && vertices >= 0 && joints + vertices == tokens && t_row_ptr.size(0) == vertices + 1,
                    "mesh_attention: joints + vertices must be the number of tokens");
    for (const auto* t : {&tiles, &t_tiles})
      STD_TORCH_CHECK(!t->has_value() || ((*t)->size(1) == 128 && (*t)->size(0) <= vertices),
                      "mesh_attention: tiles must be [up to V, 128], made by mesh_topology");
    STD_TORCH_CHECK(dim > 0, "mesh_attention: the head dimension must be positive");
    STD_TORCH_CHECK(tokens < (int64_t(1) << 30) && heads < (int64_t(1) << 30), "mesh_attention: q is too large");
    if (!(dropout_p > 0.0)) return;
    STD_TORCH_CHECK(dropout_p < 1.0 && seed_in.has_value(), "mesh_attention: dropout needs a seed and a probability below 1");
    seed = checked(seed_in, ScalarType::Long, 1, "mesh_attention: seed", q_in);
    STD_TORCH_CHECK(seed->size(0) == 1, "mesh_attention: seed must be one int64");
    const uint64_t threshold = uint64_t(dropout_p * 4294967296.0);
    drop_below = uint32_t(threshold < 0xFFFFFFFFu ? threshold : 0xFFFFFFFFu);
    keep_scale = float(1.0 / (1.0 - dropout_p));
  }
};

// What the backward pass has besides.
struct MeshAttentionGrads {
  Tensor grad, delta, lse;

  MeshAttentionGrads(const MeshAttentionArgs& a, const Tensor& q_in, const Tensor& grad_in, const Tensor& delta_in,
                     const Tensor& lse_in)
      : grad(head_rows_like(grad_in, q_in, "mesh_attention: grad")),
        delta(checked(delta_in, ScalarType::Float, 3, "mesh_attention: delta", q_in)),
        lse(checked(lse_in, ScalarType::Float, 3, "mesh_attention: lse", q_in)) {
    for (const Tensor* t : {&delta, &lse})
      STD_TORCH_CHECK(t->size(0) == a.batch && t->size(1) == a.heads && t->size(2) == a.tokens,
                      "mesh_attention: delta and lse must be [B, H, T]");
  }
};

}  // namespace tore_fast
