#include "../cuda/mesh_attention.h"

#include "stable_cuda.h"

namespace tore_fast {
namespace {

Tensor head_rows(const Tensor& t, const Tensor& like, const char* what) {
  STD_TORCH_CHECK(t.dim() == 4 && t.scalar_type() == like.scalar_type(), what, ": must be [B, H, T, D] in q's dtype");
  for (int i = 0; i < 4; ++i) STD_TORCH_CHECK(t.size(i) == like.size(i), what, ": must have q's shape");
  return t.stride(3) == 1 || t.size(3) == 1 ? t : torch::stable::contiguous(t);
}

cuda::HeadTensor view(const Tensor& t) { return {t.const_data_ptr(), t.stride(0), t.stride(1), t.stride(2)}; }

// Everything both passes share; the tensors behind the pointers are kept alive by this object.
struct Call {
  Tensor q, k, v, row_ptr, col_idx, t_row_ptr, t_col_idx, seed;
  cuda::MeshAttentionParams p{};
  cuda::DType dtype;

  Call(const Tensor& q_in, const Tensor& k_in, const Tensor& v_in, const Tensor& row_ptr_in, const Tensor& col_idx_in,
       const Tensor& t_row_ptr_in, const Tensor& t_col_idx_in, int64_t joints, double scale, double dropout_p,
       const std::optional<Tensor>& seed_in)
      : q(head_rows(q_in, q_in, "mesh_attention: q")),
        k(head_rows(k_in, q_in, "mesh_attention: k")),
        v(head_rows(v_in, q_in, "mesh_attention: v")),
        row_ptr(checked(row_ptr_in, ScalarType::Int, 1, "mesh_attention: row_ptr")),
        col_idx(checked(col_idx_in, ScalarType::Int, 1, "mesh_attention: col_idx")),
        t_row_ptr(checked(t_row_ptr_in, ScalarType::Int, 1, "mesh_attention: t_row_ptr")),
        t_col_idx(checked(t_col_idx_in, ScalarType::Int, 1, "mesh_attention: t_col_idx")),
        seed(q),
        dtype(dtype_of(q_in, "mesh_attention: q")) {
    const int64_t vertices = row_ptr.size(0) - 1;
    STD_TORCH_CHECK(joints >= 0 && vertices >= 0 && joints + vertices == q.size(2) && t_row_ptr.size(0) == vertices + 1,
                    "mesh_attention: joints + vertices must be the number of tokens");
    STD_TORCH_CHECK(q.size(3) <= cuda::kMeshMaxDim, "mesh_attention: head dimension above ", cuda::kMeshMaxDim);
    p.q = view(q);
    p.k = view(k);
    p.v = view(v);
    p.row_ptr = row_ptr.const_data_ptr<int32_t>();
    p.col_idx = col_idx.const_data_ptr<int32_t>();
    p.t_row_ptr = t_row_ptr.const_data_ptr<int32_t>();
    p.t_col_idx = t_col_idx.const_data_ptr<int32_t>();
    p.batch = q.size(0);
    p.heads = int(q.size(1));
    p.joints = int(joints);
    p.vertices = int(vertices);
    p.dim = int(q.size(3));
    p.scale = float(scale);
    p.dropout = {nullptr, 0, 1.f};
    if (dropout_p > 0.0) {
      STD_TORCH_CHECK(dropout_p < 1.0 && seed_in.has_value(), "mesh_attention: dropout needs a seed and p below 1");
      seed = checked(*seed_in, ScalarType::Long, 1, "mesh_attention: seed");
      const uint64_t threshold = uint64_t(dropout_p * 4294967296.0);
      p.dropout = {seed.const_data_ptr<int64_t>(), uint32_t(threshold < 0xFFFFFFFFu ? threshold : 0xFFFFFFFFu),
                   float(1.0 / (1.0 - dropout_p))};
    }
  }
};

std::tuple<Tensor, Tensor> mesh_attention_fwd_cuda(const Tensor& q, const Tensor& k, const Tensor& v,
                                                   const Tensor& row_ptr, const Tensor& col_idx, const Tensor& t_row_ptr,
                                                   const Tensor& t_col_idx, int64_t joints, double scale,
                                                   double dropout_p, const std::optional<Tensor>& seed) {
  DeviceGuard guard(q.get_device_index());
  Call call(q, k, v, row_ptr, col_idx, t_row_ptr, t_col_idx, joints, scale, dropout_p, seed);
  const int64_t batch = q.size(0), heads = q.size(1), tokens = q.size(2);
  Tensor out = torch::stable::new_empty(q, {batch, tokens, heads, q.size(3)});
  Tensor lse = torch::stable::new_empty(q, {batch, heads, tokens}, ScalarType::Float);
  call.p.out = out.mutable_data_ptr();
  call.p.lse_out = lse.mutable_data_ptr<float>();
  STD_CUDA_CHECK(cuda::mesh_attention_fwd(call.p, call.dtype, current_stream(q)));
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor> mesh_attention_bwd_cuda(const Tensor& grad_in, const Tensor& q, const Tensor& k,
                                                           const Tensor& v, const Tensor& delta_in, const Tensor& lse_in,
                                                           const Tensor& row_ptr, const Tensor& col_idx,
                                                           const Tensor& t_row_ptr, const Tensor& t_col_idx,
                                                           int64_t joints, double scale, double dropout_p,
                                                           const std::optional<Tensor>& seed) {
  DeviceGuard guard(q.get_device_index());
  Call call(q, k, v, row_ptr, col_idx, t_row_ptr, t_col_idx, joints, scale, dropout_p, seed);
  const Tensor grad = head_rows(grad_in, q, "mesh_attention: grad");
  const Tensor delta = checked(delta_in, ScalarType::Float, 3, "mesh_attention: delta");
  const Tensor lse = checked(lse_in, ScalarType::Float, 3, "mesh_attention: lse");
  const int64_t batch = q.size(0), heads = q.size(1), tokens = q.size(2);
  STD_TORCH_CHECK(delta.numel() == batch * heads * tokens && lse.numel() == delta.numel(),
                  "mesh_attention: delta and lse must be [B, H, T]");
  call.p.grad = view(grad);
  call.p.delta = delta.const_data_ptr<float>();
  call.p.lse_in = lse.const_data_ptr<float>();
  Tensor dq = torch::stable::new_empty(q, {batch, tokens, heads, q.size(3)});
  Tensor dk = torch::stable::new_empty(q, {batch, tokens, heads, q.size(3)});
  Tensor dv = torch::stable::new_empty(q, {batch, tokens, heads, q.size(3)});
  call.p.dq = dq.mutable_data_ptr();
  call.p.dk = dk.mutable_data_ptr();
  call.p.dv = dv.mutable_data_ptr();
  STD_CUDA_CHECK(cuda::mesh_attention_bwd(call.p, call.dtype, current_stream(q)));
  return {dq, dk, dv};
}

}  // namespace

TORE_FAST_CUDA_KERNELS(m) {
  m.impl("mesh_attention_fwd", TORCH_BOX(&mesh_attention_fwd_cuda));
  m.impl("mesh_attention_bwd", TORCH_BOX(&mesh_attention_bwd_cuda));
}

}  // namespace tore_fast
