// ToMe matching of even against odd tokens, and the segment sums of merging. float32, contiguous. One task: one item.
#pragma once
#include <cstdint>

namespace tore_fast::cpu {

struct BipartiteMatchParams {
  const float* metric;       // [batch, tokens, channels]
  const uint8_t* is_protected;  // [batch, tokens] or null
  const float* coverage;     // [batch, tokens] or null
  int64_t tokens, channels, parity;  // A = positions parity, parity + 2, ...
  bool class_token, distill_token, forced;
  float* best;   // [batch, A] score of each A token's partner
  int32_t* dst;  // [batch, A] the partner's index inside B

  int64_t num_a() const { return parity ? tokens / 2 : tokens - tokens / 2; }
  int64_t num_b() const { return tokens - num_a(); }
};

int64_t bipartite_match_scratch(const BipartiteMatchParams& p);  // floats per worker
void bipartite_match(const BipartiteMatchParams& p, int64_t begin, int64_t end, float* scratch);
void bipartite_match_avx2(const BipartiteMatchParams& p, int64_t begin, int64_t end, float* scratch);

// A tokens of one item by descending best score, equal scores by ascending index.
void rank_by_score(const float* best, int64_t count, int32_t* ranking);

struct BipartiteMergeParams {
  const float* x;        // [batch, tokens, channels]
  const int64_t* owner;  // [batch, tokens], each in [0, rows)
  const float* weight;   // [batch, tokens] or null
  float* y;              // [batch, rows, channels]
  int64_t tokens, rows, channels;
  bool average;
};

void bipartite_merge(const BipartiteMergeParams& p, int64_t begin, int64_t end, float* row_weight);  // row_weight: [rows]

}  // namespace tore_fast::cpu
