#include "../cpu/bipartite_match.h"

#include <algorithm>
#include <vector>

#include "stable.h"

namespace tore_fast {
namespace {

using Optional = std::optional<Tensor>;

std::tuple<Tensor, Tensor, Tensor, Tensor> bipartite_match_cpu(const Tensor& metric_in, const Optional& protected_in,
                                                               const Optional& coverage_in, int64_t r, int64_t parity,
                                                               bool class_token, bool distill_token, int64_t protect,
                                                               bool sort_by_index) {
  const Tensor metric = checked(metric_in, ScalarType::Float, 3, "bipartite_match: metric");
  const int64_t batch = metric.size(0), tokens = metric.size(1);
  Optional flag, coverage;
  if (protected_in.has_value()) flag = checked(*protected_in, ScalarType::Bool, 2, "bipartite_match: protected");
  if (coverage_in.has_value()) coverage = checked(*coverage_in, ScalarType::Float, 2, "bipartite_match: coverage");
  STD_TORCH_CHECK(!flag.has_value() || flag->numel() == batch * tokens, "bipartite_match: protected must be [B, T]");
  STD_TORCH_CHECK(!coverage.has_value() || coverage->numel() == batch * tokens,
                  "bipartite_match: coverage must be [B, T]");
  STD_TORCH_CHECK(parity == 0 || parity == 1, "bipartite_match: source_parity must be 0 or 1");
  cpu::BipartiteMatchParams p{metric.const_data_ptr<float>(),
                              flag.has_value() ? static_cast<const uint8_t*>(flag->const_data_ptr()) : nullptr,
                              coverage.has_value() ? coverage->const_data_ptr<float>() : nullptr,
                              tokens,
                              metric.size(2),
                              parity,
                              class_token,
                              distill_token,
                              protect == 1,
                              nullptr,
                              nullptr};
  const int64_t na = p.num_a();
  STD_TORCH_CHECK(r >= 0 && r <= na && (r == 0 || p.num_b() > 0), "bipartite_match: r out of range");
  Tensor unm = torch::stable::new_empty(metric, {batch, na - r}, ScalarType::Int);
  Tensor src = torch::stable::new_empty(metric, {batch, r}, ScalarType::Int);
  Tensor dst = torch::stable::new_empty(metric, {batch, r}, ScalarType::Int);
  Tensor best = torch::stable::new_empty(metric, {batch, na});
  std::vector<int32_t> partner(batch * na);
  p.best = best.mutable_data_ptr<float>();
  p.dst = partner.data();
  int32_t *unm_out = unm.mutable_data_ptr<int32_t>(), *src_out = src.mutable_data_ptr<int32_t>(),
          *dst_out = dst.mutable_data_ptr<int32_t>();
  const int64_t scratch = cpu::bipartite_match_scratch(p);
  torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> buffer(scratch);
    std::vector<int32_t> ranking(na);
    cpu::bipartite_match(p, begin, end, buffer.data());
    for (int64_t b = begin; b < end; ++b) {
      cpu::rank_by_score(p.best + b * na, na, ranking.data());
      for (int64_t i = 0; i < r; ++i) {
        src_out[b * r + i] = ranking[i];
        dst_out[b * r + i] = partner[b * na + ranking[i]];
      }
      if (sort_by_index) std::sort(ranking.begin() + r, ranking.end());
      std::copy(ranking.begin() + r, ranking.end(), unm_out + b * (na - r));
    }
  });
  return {unm, src, dst, best};
}

Tensor bipartite_merge_cpu(const Tensor& x_in, const Tensor& owner_in, int64_t rows, bool average,
                           const Optional& weight_in) {
  const Tensor x = checked(x_in, ScalarType::Float, 3, "bipartite_merge: x");
  const Tensor owner = checked(owner_in, ScalarType::Long, 2, "bipartite_merge: owner");
  const int64_t batch = x.size(0), tokens = x.size(1);
  STD_TORCH_CHECK(owner.size(0) == batch && owner.size(1) == tokens, "bipartite_merge: owner must be [B, T]");
  Optional weight;
  if (weight_in.has_value()) weight = checked(*weight_in, ScalarType::Float, 2, "bipartite_merge: weight");
  STD_TORCH_CHECK(!weight.has_value() || weight->numel() == batch * tokens, "bipartite_merge: weight must be [B, T]");
  const int64_t* own = owner.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < batch * tokens; ++i) {
    STD_TORCH_CHECK(own[i] >= 0 && own[i] < rows, "bipartite_merge: owner out of range");
  }
  Tensor y = torch::stable::new_empty(x, {batch, rows, x.size(2)});
  const cpu::BipartiteMergeParams p{x.const_data_ptr<float>(),
                                    own,
                                    weight.has_value() ? weight->const_data_ptr<float>() : nullptr,
                                    y.mutable_data_ptr<float>(),
                                    tokens,
                                    rows,
                                    x.size(2),
                                    average};
  torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> row_weight(rows);
    cpu::bipartite_merge(p, begin, end, row_weight.data());
  });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tore_fast, CPU, m) {
  m.impl("bipartite_match", TORCH_BOX(&bipartite_match_cpu));
  m.impl("bipartite_merge", TORCH_BOX(&bipartite_merge_cpu));
}

}  // namespace tore_fast
