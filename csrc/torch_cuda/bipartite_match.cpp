#include "../cuda/bipartite_match.h"

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
  const Tensor metric = checked(metric_in, metric_in.scalar_type(), 3, "bipartite_match: metric");
  const int64_t batch = metric.size(0), tokens = metric.size(1);
  Optional flag, coverage;
  if (protected_in.has_value()) flag = checked(*protected_in, ScalarType::Bool, 2, "bipartite_match: protected");
  if (coverage_in.has_value()) coverage = checked(*coverage_in, ScalarType::Float, 2, "bipartite_match: coverage");
  STD_TORCH_CHECK(!flag.has_value() || flag->numel() == batch * tokens, "bipartite_match: protected must be [B, T]");
  STD_TORCH_CHECK(!coverage.has_value() || coverage->numel() == batch * tokens,
                  "bipartite_match: coverage must be [B, T]");
  STD_TORCH_CHECK(parity == 0 || parity == 1, "bipartite_match: source_parity must be 0 or 1");
  const int64_t na = parity ? tokens / 2 : tokens - tokens / 2;
  STD_TORCH_CHECK(r >= 0 && r <= na && (r == 0 || tokens > na), "bipartite_match: r out of range");
  Tensor unm = torch::stable::new_empty(metric, {batch, na - r}, ScalarType::Int);
  Tensor src = torch::stable::new_empty(metric, {batch, r}, ScalarType::Int);
  Tensor dst = torch::stable::new_empty(metric, {batch, r}, ScalarType::Int);
  Tensor best = torch::stable::new_empty(metric, {batch, na}, ScalarType::Float);
  Tensor partner = torch::stable::new_empty(metric, {batch, na}, ScalarType::Int);
  const cuda::BipartiteMatchParams p{metric.const_data_ptr(),
                                     flag.has_value() ? static_cast<const uint8_t*>(flag->const_data_ptr()) : nullptr,
                                     coverage.has_value() ? coverage->const_data_ptr<float>() : nullptr,
                                     unm.mutable_data_ptr<int32_t>(),
                                     src.mutable_data_ptr<int32_t>(),
                                     dst.mutable_data_ptr<int32_t>(),
                                     best.mutable_data_ptr<float>(),
                                     partner.mutable_data_ptr<int32_t>(),
                                     batch,
                                     int(tokens),
                                     int(metric.size(2)),
                                     int(r),
                                     int(parity),
                                     class_token,
                                     distill_token,
                                     protect == 1,
                                     sort_by_index};
  STD_CUDA_CHECK(cuda::bipartite_match(p, dtype, current_stream(metric)));
  return {unm, src, dst, best};
}

Tensor bipartite_merge_cuda(const Tensor& x_in, const Tensor& owner_in, int64_t rows, bool average,
                            const Optional& weight_in) {
  const cuda::DType dtype = dtype_of(x_in, "bipartite_merge: x");
  DeviceGuard guard(x_in.get_device_index());
  const Tensor x = checked(x_in, x_in.scalar_type(), 3, "bipartite_merge: x");
  const Tensor owner = checked(owner_in, ScalarType::Long, 2, "bipartite_merge: owner");
  const int64_t batch = x.size(0), tokens = x.size(1);
  STD_TORCH_CHECK(owner.size(0) == batch && owner.size(1) == tokens, "bipartite_merge: owner must be [B, T]");
  Optional weight;
  if (weight_in.has_value()) weight = checked(*weight_in, ScalarType::Float, 2, "bipartite_merge: weight");
  STD_TORCH_CHECK(!weight.has_value() || weight->numel() == batch * tokens, "bipartite_merge: weight must be [B, T]");
  Tensor y = torch::stable::new_empty(x, {batch, rows, x.size(2)});
  const cuda::BipartiteMergeParams p{x.const_data_ptr(),
                                     owner.const_data_ptr<int64_t>(),
                                     weight.has_value() ? weight->const_data_ptr<float>() : nullptr,
                                     y.mutable_data_ptr(),
                                     batch,
                                     int(tokens),
                                     int(rows),
                                     int(x.size(2)),
                                     average};
  STD_CUDA_CHECK(cuda::bipartite_merge(p, dtype, current_stream(x)));
  return y;
}

}  // namespace

TORE_FAST_CUDA_KERNELS(m) {
  m.impl("bipartite_match", TORCH_BOX(&bipartite_match_cuda));
  m.impl("bipartite_merge", TORCH_BOX(&bipartite_merge_cuda));
}

}  // namespace tore_fast
