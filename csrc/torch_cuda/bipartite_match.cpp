#include "../cuda/bipartite_match.h"

#include "../torch/bipartite_match_args.h"
#include "stable_cuda.h"

namespace tore_fast {
namespace {

using Optional = std::optional<Tensor>;

std::tuple<Tensor, Tensor, Tensor, Tensor> bipartite_match_cuda(const Tensor& metric_in, const Optional& protected_in,
                                                                const Optional& coverage_in, int64_t r, int64_t parity,
                                                                bool class_token, bool distill_token, int64_t protect,
                                                                bool sort_by_index) {
  const cuda::DType dtype = dtype_of(metric_in, "bipartite_match: metric");
  DeviceGuard guard(metric_in.get_device_index());
  const BipartiteMatchArgs a(metric_in, protected_in, coverage_in, r, parity);
  const int64_t batch = a.batch, na = a.num_a;
  Tensor unm = make_tensor(a.metric, {batch, na - r}, ScalarType::Int);
  Tensor src = make_tensor(a.metric, {batch, r}, ScalarType::Int);
  Tensor dst = make_tensor(a.metric, {batch, r}, ScalarType::Int);
  Tensor best = make_tensor(a.metric, {batch, na}, ScalarType::Float);
  Tensor partner = make_tensor(a.metric, {batch, na}, ScalarType::Int);
  const cuda::BipartiteMatchParams p{a.metric.const_data_ptr(),
                                     data_or_null<uint8_t>(a.flag),
                                     data_or_null<float>(a.coverage),
                                     unm.mutable_data_ptr<int32_t>(),
                                     src.mutable_data_ptr<int32_t>(),
                                     dst.mutable_data_ptr<int32_t>(),
                                     best.mutable_data_ptr<float>(),
                                     partner.mutable_data_ptr<int32_t>(),
                                     batch,
                                     int(a.tokens),
                                     int(a.channels),
                                     int(r),
                                     int(parity),
                                     class_token,
                                     distill_token,
                                     protect == 1,
                                     sort_by_index};
  STD_CUDA_CHECK(cuda::bipartite_match(p, dtype, current_stream(a.metric)));
  return {unm, src, dst, best};
}

Tensor bipartite_merge_cuda(const Tensor& x_in, const Tensor& owner_in, int64_t rows, bool average,
                            const Optional& weight_in) {
  const cuda::DType dtype = dtype_of(x_in, "bipartite_merge: x");
  DeviceGuard guard(x_in.get_device_index());
  const BipartiteMergeArgs a(x_in, owner_in, rows, weight_in);
  Tensor y = make_tensor(a.x, {a.batch, rows, a.channels});
  const cuda::BipartiteMergeParams p{a.x.const_data_ptr(),
                                     a.owner.const_data_ptr<int64_t>(),
                                     data_or_null<float>(a.weight),
                                     y.mutable_data_ptr(),
                                     a.batch,
                                     int(a.tokens),
                                     int(rows),
                                     int(a.channels),
                                     average};
  STD_CUDA_CHECK(cuda::bipartite_merge(p, dtype, current_stream(a.x)));
  return y;
}

}  // namespace

TORE_FAST_CUDA_KERNELS(m) {
  m.impl("bipartite_match", TORCH_BOX(&bipartite_match_cuda));
  m.impl("bipartite_merge", TORCH_BOX(&bipartite_merge_cuda));
}

}  // namespace tore_fast
