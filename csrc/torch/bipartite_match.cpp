#include "../cpu/bipartite_match.h"

#include <algorithm>
#include <vector>

#include "bipartite_match_args.h"

namespace tore_fast {
namespace {

using Optional = std::optional<Tensor>;

std::tuple<Tensor, Tensor, Tensor, Tensor> bipartite_match_cpu(const Tensor& metric_in, const Optional& protected_in,
                                                               const Optional& coverage_in, int64_t r, int64_t parity,
                                                               bool class_token, bool distill_token, int64_t protect,
                                                               bool sort_by_index) {
  const BipartiteMatchArgs a(metric_in, protected_in, coverage_in, r, parity);
  STD_TORCH_CHECK(a.metric.scalar_type() == ScalarType::Float, "bipartite_match: metric must be float32");
  const int64_t batch = a.batch, na = a.num_a;
  cpu::BipartiteMatchParams p{a.metric.const_data_ptr<float>(),
                              data_or_null<uint8_t>(a.flag),
                              data_or_null<float>(a.coverage),
                              a.tokens,
                              a.channels,
                              parity,
                              class_token,
                              distill_token,
                              protect == 1,
                              nullptr,
                              nullptr};
  Tensor unm = torch::stable::new_empty(a.metric, {batch, na - r}, ScalarType::Int);
  Tensor src = torch::stable::new_empty(a.metric, {batch, r}, ScalarType::Int);
  Tensor dst = torch::stable::new_empty(a.metric, {batch, r}, ScalarType::Int);
  Tensor best = torch::stable::new_empty(a.metric, {batch, na});
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
  const BipartiteMergeArgs a(x_in, owner_in, rows, weight_in);
  STD_TORCH_CHECK(a.x.scalar_type() == ScalarType::Float, "bipartite_merge: x must be float32");
  const int64_t* own = a.owner.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < a.batch * a.tokens; ++i) {
    STD_TORCH_CHECK(own[i] >= 0 && own[i] < rows, "bipartite_merge: owner out of range");
  }
  Tensor y = torch::stable::new_empty(a.x, {a.batch, rows, a.channels});
  const cpu::BipartiteMergeParams p{a.x.const_data_ptr<float>(),
                                    own,
                                    data_or_null<float>(a.weight),
                                    y.mutable_data_ptr<float>(),
                                    a.tokens,
                                    rows,
                                    a.channels,
                                    average};
  torch::stable::parallel_for(0, a.batch, 1, [&](int64_t begin, int64_t end) {
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
