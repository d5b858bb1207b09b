#include "../cpu/token_map.h"

#include "../cpu/cluster_merge.h"
#include "token_map_args.h"

namespace tore_fast {
namespace {

using Optional = std::optional<Tensor>;

std::tuple<Tensor, Tensor> token_map_cpu(const Tensor& x, const Optional&, const Optional& dst_ptr,
                                         const Optional& dst_cells, const Optional& src_idx, const Optional&,
                                         const Optional&, const Optional& weight, const Optional& src_scale,
                                         const std::vector<int64_t> grid, int64_t num_dst, bool normalize) {
  const TokenMapArgs a(x, dst_ptr, dst_cells, src_idx, weight, src_scale, grid, num_dst);
  STD_TORCH_CHECK(a.x.scalar_type() == ScalarType::Float, "token_map: x must be float32");
  Tensor out = empty_floats(a.x, {a.batch, num_dst, a.channels});
  Tensor scale = torch::stable::new_empty(a.x, {a.batch, num_dst});
  const cpu::TokenMapParams p{a.x.const_data_ptr<float>(),
                              data_or_null<int32_t>(a.dst_ptr),
                              data_or_null<int32_t>(a.dst_cells),
                              data_or_null<int64_t>(a.src_idx),
                              data_or_null<float>(a.weight),
                              data_or_null<float>(a.src_scale),
                              a.cells,
                              a.num_src,
                              num_dst,
                              a.channels,
                              normalize,
                              out.mutable_data_ptr<float>(),
                              scale.mutable_data_ptr<float>()};
  const cpu::CellGrid cells(a.h0, a.w0, a.h, a.w);
  torch::stable::parallel_for(0, a.batch * num_dst, 64,
                              [&](int64_t begin, int64_t end) { cpu::token_map(p, cells, begin, end); });
  return {out, scale};
}

std::tuple<Tensor, Tensor> token_map_csr_cpu(const Tensor& idx_in, int64_t num_tokens) {
  const Tensor idx = checked(idx_in, ScalarType::Long, 2, "token_csr: idx_token");
  const int64_t batch = idx.size(0), cells = idx.size(1);
  STD_TORCH_CHECK(num_tokens >= 0, "token_csr: num_tokens must not be negative");
  Tensor row_ptr = torch::stable::new_empty(idx, {batch, num_tokens + 1}, ScalarType::Int);
  Tensor items = torch::stable::new_empty(idx, {batch, cells}, ScalarType::Int);
  const int64_t* id = idx.const_data_ptr<int64_t>();
  int32_t *ptr = row_ptr.mutable_data_ptr<int32_t>(), *out = items.mutable_data_ptr<int32_t>();
  torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      cpu::group_by_id(id + b * cells, cells, num_tokens, ptr + b * (num_tokens + 1), out + b * cells);
  });
  return {row_ptr, items};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tore_fast, CPU, m) {
  m.impl("token_map", TORCH_BOX(&token_map_cpu));
  m.impl("token_map_csr", TORCH_BOX(&token_map_csr_cpu));
}

}  // namespace tore_fast
