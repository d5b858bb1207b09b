#include <algorithm>

#include "bipartite_match_kernel.h"
#include "simd.h"

namespace tore_fast::cpu {

int64_t bipartite_match_scratch(const BipartiteMatchParams& p) { return match_scratch(p); }

void bipartite_match(const BipartiteMatchParams& p, int64_t begin, int64_t end, float* scratch) {
  TORE_FAST_SIMD(bipartite_match, p, begin, end, scratch);
  for (int64_t i = begin; i < end; ++i) match_item(p, i, scratch);
}

void rank_by_score(const float* best, int64_t count, int32_t* ranking) {
  for (int64_t i = 0; i < count; ++i) ranking[i] = int32_t(i);
  std::stable_sort(ranking, ranking + count, [&](int32_t a, int32_t b) { return best[a] > best[b]; });
}

void bipartite_merge(const BipartiteMergeParams& p, int64_t begin, int64_t end, float* row_weight) {
  for (int64_t item = begin; item < end; ++item) {
    const float* x = p.x + item * p.tokens * p.channels;
    float* y = p.y + item * p.rows * p.channels;
    std::fill(y, y + p.rows * p.channels, 0.f);
    std::fill(row_weight, row_weight + p.rows, 0.f);
    for (int64_t t = 0; t < p.tokens; ++t) {
      const int64_t row = p.owner[item * p.tokens + t];
      const float w = p.weight ? p.weight[item * p.tokens + t] : 1.f;
      row_weight[row] += w;
      float* to = y + row * p.channels;
      for (int64_t c = 0; c < p.channels; ++c) to[c] += w * x[t * p.channels + c];
    }
    if (!p.average) continue;
    for (int64_t row = 0; row < p.rows; ++row) {
      if (row_weight[row] == 1.f || row_weight[row] == 0.f) continue;  // an unused row stays 0
      const float inverse = 1.f / row_weight[row];
      for (int64_t c = 0; c < p.channels; ++c) y[row * p.channels + c] *= inverse;
    }
  }
}

}  // namespace tore_fast::cpu
