#include "../cpu/mesh_attention.h"

#include <algorithm>
#include <vector>

#include "head_tensor.h"

namespace tore_fast {
namespace {

struct Topology {
  Tensor row_ptr, col_idx;
  cpu::MeshTopologyView view;
  Topology(const Tensor& row_ptr_in, const Tensor& col_idx_in, int64_t joints, int64_t tokens)
      : row_ptr(checked(row_ptr_in, ScalarType::Int, 1, "mesh_attention: row_ptr")),
        col_idx(checked(col_idx_in, ScalarType::Int, 1, "mesh_attention: col_idx")) {
    const int64_t vertices = row_ptr.size(0) - 1, nnz = col_idx.size(0);
    STD_TORCH_CHECK(joints >= 0 && vertices >= 0 && joints + vertices == tokens,
                    "mesh_attention: joints + vertices must be the number of tokens");
    view = {row_ptr.const_data_ptr<int32_t>(), col_idx.const_data_ptr<int32_t>(), joints, vertices, 0};
    bool ok = view.row_ptr[0] == 0 && view.row_ptr[vertices] == nnz;
    for (int64_t i = 0; i < vertices; ++i) ok &= view.row_ptr[i] <= view.row_ptr[i + 1];
    for (int64_t i = 0; i < nnz; ++i) ok &= uint32_t(view.col_idx[i]) < uint32_t(vertices);
    for (int64_t i = 0; i < vertices; ++i)
      view.longest_row = std::max<int64_t>(view.longest_row, view.row_ptr[i + 1] - view.row_ptr[i]);
    ok &= view.longest_row <= vertices;  // duplicates could make a row longer than the kernel's scratch
    STD_TORCH_CHECK(ok, "mesh_attention: row_ptr or col_idx out of range");
  }
};

cpu::Dropout make_dropout(double p, const std::optional<Tensor>& seed) {
  if (!(p > 0.0)) return {0, 0, 1.f};
  STD_TORCH_CHECK(p < 1.0 && seed.has_value(), "mesh_attention: dropout needs a seed and a probability below 1");
  const Tensor s = checked(*seed, ScalarType::Long, 1, "mesh_attention: seed");
  STD_TORCH_CHECK(s.size(0) == 1, "mesh_attention: seed must be one int64");
  const uint64_t threshold = uint64_t(p * 4294967296.0);
  return {uint32_t(uint64_t(*s.const_data_ptr<int64_t>())), uint32_t(threshold < 0xFFFFFFFFu ? threshold : 0xFFFFFFFFu),
          float(1.0 / (1.0 - p))};
}

std::tuple<Tensor, Tensor> mesh_attention_fwd_cpu(const Tensor& q_in, const Tensor& k_in, const Tensor& v_in,
                                                  const Tensor& row_ptr, const Tensor& col_idx, const Tensor&,
                                                  const Tensor&, int64_t joints, double scale, double dropout_p,
                                                  const std::optional<Tensor>& seed) {
  const Tensor q = head_rows(q_in, "mesh_attention: q"), k = head_rows(k_in, "mesh_attention: k"),
               v = head_rows(v_in, "mesh_attention: v");
  same_size(q, k, "mesh_attention: k");
  same_size(q, v, "mesh_attention: v");
  const int64_t batch = q.size(0), heads = q.size(1), tokens = q.size(2), dim = q.size(3);
  const Topology mesh(row_ptr, col_idx, joints, tokens);
  Tensor out = empty_floats(q, {batch, tokens, heads, dim});
  Tensor lse = torch::stable::new_empty(q, {batch, heads, tokens});
  const cpu::MeshAttentionFwd p{view(q),   view(k),
                                view(v),   out.mutable_data_ptr<float>(),
                                lse.mutable_data_ptr<float>(),
                                mesh.view, heads,
                                dim,       float(scale),
                                make_dropout(dropout_p, seed)};
  const int64_t scratch = cpu::mesh_attention_fwd_scratch(p);
  torch::stable::parallel_for(0, batch * heads, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> buffer(scratch);
    cpu::mesh_attention_fwd(p, begin, end, buffer.data());
  });
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor> mesh_attention_bwd_cpu(const Tensor& grad_in, const Tensor& q_in, const Tensor& k_in,
                                                          const Tensor& v_in, const Tensor& delta_in,
                                                          const Tensor& lse_in, const Tensor& row_ptr,
                                                          const Tensor& col_idx, const Tensor&, const Tensor&,
                                                          int64_t joints, double scale, double dropout_p,
                                                          const std::optional<Tensor>& seed) {
  const Tensor q = head_rows(q_in, "mesh_attention: q"), k = head_rows(k_in, "mesh_attention: k"),
               v = head_rows(v_in, "mesh_attention: v"), grad = head_rows(grad_in, "mesh_attention: grad");
  same_size(q, k, "mesh_attention: k");
  same_size(q, v, "mesh_attention: v");
  same_size(q, grad, "mesh_attention: grad");
  const Tensor delta = checked(delta_in, ScalarType::Float, 3, "mesh_attention: delta");
  const Tensor lse = checked(lse_in, ScalarType::Float, 3, "mesh_attention: lse");
  const int64_t batch = q.size(0), heads = q.size(1), tokens = q.size(2), dim = q.size(3);
  STD_TORCH_CHECK(delta.numel() == batch * heads * tokens && lse.numel() == delta.numel(),
                  "mesh_attention: delta and lse must be [B, H, T]");
  const Topology mesh(row_ptr, col_idx, joints, tokens);
  Tensor dq = empty_floats(q, {batch, tokens, heads, dim});
  Tensor dk = empty_floats(q, {batch, tokens, heads, dim});
  Tensor dv = empty_floats(q, {batch, tokens, heads, dim});
  const cpu::MeshAttentionBwd p{view(q),
                                view(k),
                                view(v),
                                view(grad),
                                delta.const_data_ptr<float>(),
                                lse.const_data_ptr<float>(),
                                dq.mutable_data_ptr<float>(),
                                dk.mutable_data_ptr<float>(),
                                dv.mutable_data_ptr<float>(),
                                mesh.view,
                                heads,
                                dim,
                                float(scale),
                                make_dropout(dropout_p, seed)};
  const int64_t scratch = cpu::mesh_attention_bwd_scratch(p);
  torch::stable::parallel_for(0, batch * heads, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> buffer(scratch);
    cpu::mesh_attention_bwd(p, begin, end, buffer.data());
  });
  return {dq, dk, dv};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tore_fast, CPU, m) {
  m.impl("mesh_attention_fwd", TORCH_BOX(&mesh_attention_fwd_cpu));
  m.impl("mesh_attention_bwd", TORCH_BOX(&mesh_attention_bwd_cpu));
}

}  // namespace tore_fast
