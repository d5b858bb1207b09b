#include "../cuda/mesh_attention.h"

#include "../torch/mesh_attention_args.h"
#include "stable_cuda.h"

namespace tore_fast {
namespace {

cuda::HeadTensor view(const Tensor& t) { return {t.const_data_ptr(), t.stride(0), t.stride(1), t.stride(2)}; }

cuda::MeshAttentionParams params_of(const MeshAttentionArgs& a, double scale) {
  STD_TORCH_CHECK(a.dim <= cuda::kMeshMaxDim, "mesh_attention: head dimension above ", cuda::kMeshMaxDim);
  cuda::MeshAttentionParams p{};
  p.q = view(a.q);
  p.k = view(a.k);
  p.v = view(a.v);
  p.row_ptr = a.row_ptr.const_data_ptr<int32_t>();
  p.col_idx = a.col_idx.const_data_ptr<int32_t>();
  p.t_row_ptr = a.t_row_ptr.const_data_ptr<int32_t>();
  p.t_col_idx = a.t_col_idx.const_data_ptr<int32_t>();
  p.tiles = data_or_null<int32_t>(a.tiles);
  p.t_tiles = data_or_null<int32_t>(a.t_tiles);
  p.num_tiles = a.tiles ? int(a.tiles->size(0)) : 0;
  p.num_t_tiles = a.t_tiles ? int(a.t_tiles->size(0)) : 0;
  p.batch = a.batch;
  p.heads = int(a.heads);
  p.joints = int(a.joints);
  p.vertices = int(a.vertices);
  p.dim = int(a.dim);
  p.scale = float(scale);
  p.dropout = {data_or_null<int64_t>(a.seed), a.drop_below, a.keep_scale};
  return p;
}

std::tuple<Tensor, Tensor> mesh_attention_fwd_cuda(const Tensor& q, const Tensor& k, const Tensor& v,
                                                   const Tensor& row_ptr, const Tensor& col_idx, const Tensor& t_row_ptr,
                                                   const Tensor& t_col_idx, int64_t joints, const std::optional<Tensor>& tiles, const std::optional<Tensor>& t_tiles, double scale,
                                                   double dropout_p, const std::optional<Tensor>& seed) {
  DeviceGuard guard(q.get_device_index());
  const cuda::DType dtype = dtype_of(q, "mesh_attention: q");
  const MeshAttentionArgs a(q, k, v, row_ptr, col_idx, t_row_ptr, t_col_idx, joints, tiles, t_tiles, dropout_p, seed);
  cuda::MeshAttentionParams p = params_of(a, scale);
  Tensor out = make_tensor(a.q, {a.batch, a.tokens, a.heads, a.dim});
  Tensor lse = make_tensor(a.q, {a.batch, a.heads, a.tokens}, ScalarType::Float);
  p.out = out.mutable_data_ptr();
  p.lse_out = lse.mutable_data_ptr<float>();
  STD_CUDA_CHECK(cuda::mesh_attention_fwd(p, dtype, current_stream(q)));
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor> mesh_attention_bwd_cuda(const Tensor& grad_in, const Tensor& q, const Tensor& k,
                                                           const Tensor& v, const Tensor& delta_in, const Tensor& lse_in,
                                                           const Tensor& row_ptr, const Tensor& col_idx,
                                                           const Tensor& t_row_ptr, const Tensor& t_col_idx,
                                                           int64_t joints, const std::optional<Tensor>& tiles, const std::optional<Tensor>& t_tiles, double scale, double dropout_p,
                                                           const std::optional<Tensor>& seed) {
  DeviceGuard guard(q.get_device_index());
  const cuda::DType dtype = dtype_of(q, "mesh_attention: q");
  const MeshAttentionArgs a(q, k, v, row_ptr, col_idx, t_row_ptr, t_col_idx, joints, tiles, t_tiles, dropout_p, seed);
  cuda::MeshAttentionParams p = params_of(a, scale);
  const MeshAttentionGrads g(a, q, grad_in, delta_in, lse_in);
  p.grad = view(g.grad);
  p.delta = g.delta.const_data_ptr<float>();
  p.lse_in = g.lse.const_data_ptr<float>();
  Tensor dq = make_tensor(a.q, {a.batch, a.tokens, a.heads, a.dim});
  Tensor dk = make_tensor(a.q, {a.batch, a.tokens, a.heads, a.dim});
  Tensor dv = make_tensor(a.q, {a.batch, a.tokens, a.heads, a.dim});
  p.dq = dq.mutable_data_ptr();
  p.dk = dk.mutable_data_ptr();
  p.dv = dv.mutable_data_ptr();
  STD_CUDA_CHECK(cuda::mesh_attention_bwd(p, dtype, current_stream(q)));
  return {dq, dk, dv};
}

}  // namespace

TORE_FAST_CUDA_KERNELS(m) {
  m.impl("mesh_attention_fwd", TORCH_BOX(&mesh_attention_fwd_cuda));
  m.impl("mesh_attention_bwd", TORCH_BOX(&mesh_attention_bwd_cuda));
}

}  // namespace tore_fast
