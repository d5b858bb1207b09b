#include "../cuda/token_map.h"

#include "../cuda/cluster_merge.h"
#include "../torch/token_map_args.h"
#include "stable_cuda.h"

namespace tore_fast {
namespace {

using Optional = std::optional<Tensor>;

std::tuple<Tensor, Tensor> token_map_cuda(const Tensor& x, const Optional&, const Optional& dst_ptr,
                                          const Optional& dst_cells, const Optional& src_idx, const Optional&,
                                          const Optional&, const Optional& weight, const Optional& src_scale,
                                          const std::vector<int64_t> grid, int64_t num_dst, bool normalize) {
  const cuda::DType dtype = dtype_of(x, "token_map: x");
  DeviceGuard guard(x.get_device_index());
  const TokenMapArgs a(x, dst_ptr, dst_cells, src_idx, weight, src_scale, grid, num_dst);
  Tensor out = make_tensor(a.x, {a.batch, num_dst, a.channels});
  Tensor scale = make_tensor(a.x, {a.batch, num_dst}, ScalarType::Float);
  const cuda::TokenMapParams p{a.x.const_data_ptr(),
                               data_or_null<int32_t>(a.dst_ptr),
                               data_or_null<int32_t>(a.dst_cells),
                               data_or_null<int64_t>(a.src_idx),
                               data_or_null<float>(a.weight),
                               data_or_null<float>(a.src_scale),
                               a.batch,
                               a.cells,
                               a.num_src,
                               num_dst,
                               a.channels,
                               int(a.h0),
                               int(a.w0),
                               int(a.h),
                               int(a.w),
                               normalize,
                               out.mutable_data_ptr(),
                               scale.mutable_data_ptr<float>()};
  STD_CUDA_CHECK(cuda::token_map(p, dtype, current_stream(x)));
  return {out, scale};
}

std::tuple<Tensor, Tensor> token_map_csr_cuda(const Tensor& idx_in, int64_t num_tokens) {
  const Tensor idx = checked(idx_in, ScalarType::Long, 2, "token_csr: idx_token");
  const int64_t batch = idx.size(0), cells = idx.size(1);
  STD_TORCH_CHECK(num_tokens >= 0 && num_tokens <= cuda::kMaxGroups, "token_csr: num_tokens must be in 0..",
                  cuda::kMaxGroups);
  DeviceGuard guard(idx.get_device_index());
  Tensor row_ptr = make_tensor(idx, {batch, num_tokens + 1}, ScalarType::Int);
  Tensor items = make_tensor(idx, {batch, cells}, ScalarType::Int);
  STD_CUDA_CHECK(cuda::group_by_id(idx.const_data_ptr<int64_t>(), batch, cells, num_tokens,
                                   row_ptr.mutable_data_ptr<int32_t>(), items.mutable_data_ptr<int32_t>(),
                                   current_stream(idx)));
  return {row_ptr, items};
}

}  // namespace

TORE_FAST_CUDA_KERNELS(m) {
  m.impl("token_map", TORCH_BOX(&token_map_cuda));
  m.impl("token_map_csr", TORCH_BOX(&token_map_csr_cuda));
}

}  // namespace tore_fast
