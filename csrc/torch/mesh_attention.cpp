#include "../cpu/mesh_attention.h"

#include <algorithm>
#include <vector>

#include "head_tensor.h"
#include "mesh_attention_args.h"

namespace tore_fast {
namespace {

// The pattern as the kernel wants it, every index looked at.
cpu::MeshTopologyView topology_of(const MeshAttentionArgs& a) {
  check_csr(a.row_ptr, a.col_idx, a.vertices, "mesh_attention");
  cpu::MeshTopologyView view{a.row_ptr.const_data_ptr<int32_t>(), a.col_idx.const_data_ptr<int32_t>(), a.joints, a.vertices, 0};
  for (int64_t i = 0; i < a.vertices; ++i)
    view.longest_row = std::max<int64_t>(view.longest_row, view.row_ptr[i + 1] - view.row_ptr[i]);
  // duplicates could make a row longer than the kernel's scratch
  STD_TORCH_CHECK(view.longest_row <= a.vertices, "mesh_attention: a row of col_idx is longer than there are vertices");
  return view;
}

cpu::Dropout dropout_of(const MeshAttentionArgs& a) {
  if (!a.seed) return {0, 0, 1.f};
  return {uint32_t(uint64_t(*a.seed->const_data_ptr<int64_t>())), a.drop_below, a.keep_scale};
}

void want_floats(const MeshAttentionArgs& a) {
  STD_TORCH_CHECK(a.q.scalar_type() == ScalarType::Float, "mesh_attention: q must be float32");
}

std::tuple<Tensor, Tensor> mesh_attention_fwd_cpu(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& row_ptr,
                                                  const Tensor& col_idx, const Tensor& t_row_ptr, const Tensor& t_col_idx,
                                                  int64_t joints, const std::optional<Tensor>& tiles, const std::optional<Tensor>& t_tiles, double scale, double dropout_p,
                                                  const std::optional<Tensor>& seed) {
  const MeshAttentionArgs a(q, k, v, row_ptr, col_idx, t_row_ptr, t_col_idx, joints, tiles, t_tiles, dropout_p, seed);
  want_floats(a);
  Tensor out = empty_floats(a.q, {a.batch, a.tokens, a.heads, a.dim});
  Tensor lse = torch::stable::new_empty(a.q, {a.batch, a.heads, a.tokens});
  const cpu::MeshAttentionFwd p{view(a.q),
                                view(a.k),
                                view(a.v),
                                out.mutable_data_ptr<float>(),
                                lse.mutable_data_ptr<float>(),
                                topology_of(a),
                                a.heads,
                                a.dim,
                                float(scale),
                                dropout_of(a)};
  const int64_t scratch = cpu::mesh_attention_fwd_scratch(p);
  torch::stable::parallel_for(0, a.batch * a.heads, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> buffer(scratch);
    cpu::mesh_attention_fwd(p, begin, end, buffer.data());
  });
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor> mesh_attention_bwd_cpu(const Tensor& grad, const Tensor& q, const Tensor& k,
                                                          const Tensor& v, const Tensor& delta, const Tensor& lse,
                                                          const Tensor& row_ptr, const Tensor& col_idx,
                                                          const Tensor& t_row_ptr, const Tensor& t_col_idx,
                                                          int64_t joints, const std::optional<Tensor>& tiles, const std::optional<Tensor>& t_tiles, double scale, double dropout_p,
                                                          const std::optional<Tensor>& seed) {
  const MeshAttentionArgs a(q, k, v, row_ptr, col_idx, t_row_ptr, t_col_idx, joints, tiles, t_tiles, dropout_p, seed);
  want_floats(a);
  const MeshAttentionGrads g(a, q, grad, delta, lse);
  Tensor dq = empty_floats(a.q, {a.batch, a.tokens, a.heads, a.dim});
  Tensor dk = empty_floats(a.q, {a.batch, a.tokens, a.heads, a.dim});
  Tensor dv = empty_floats(a.q, {a.batch, a.tokens, a.heads, a.dim});
  const cpu::MeshAttentionBwd p{view(a.q),
                                view(a.k),
                                view(a.v),
                                view(g.grad),
                                g.delta.const_data_ptr<float>(),
                                g.lse.const_data_ptr<float>(),
                                dq.mutable_data_ptr<float>(),
                                dk.mutable_data_ptr<float>(),
                                dv.mutable_data_ptr<float>(),
                                topology_of(a),
                                a.heads,
                                a.dim,
                                float(scale),
                                dropout_of(a)};
  const int64_t scratch = cpu::mesh_attention_bwd_scratch(p);
  torch::stable::parallel_for(0, a.batch * a.heads, 1, [&](int64_t begin, int64_t end) {
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
