// The similarity part of the matching, included once per instruction set: normalise, A B^T in register tiles, row maximum.
#pragma once
#include "attention_tile.h"
#include "bipartite_match.h"

namespace tore_fast::cpu {
namespace {

constexpr int64_t kMatchRows = 24;

inline int64_t match_scratch(const BipartiteMatchParams& p) {
  const int64_t cp = round_up(p.channels, kPad), bp = round_up(p.num_b(), 16);
  return p.tokens * cp + cp * bp + kMatchRows * bp + 64;
}

void match_item(const BipartiteMatchParams& p, int64_t item, float* scratch_base) {
  const int64_t na = p.num_a(), nb = p.num_b(), cp = round_up(p.channels, kPad), bp = round_up(nb, 16);
  Scratch scratch{scratch_base};
  float* a = scratch.take(na * cp);
  float* b = scratch.take(nb * cp);
  float* b_t = scratch.take(cp * bp);
  float* s = scratch.take(kMatchRows * bp);
  for (int64_t t = 0; t < p.tokens; ++t) {
    const float* from = p.metric + (item * p.tokens + t) * p.channels;
    float* to = (t % 2 == p.parity ? a : b) + t / 2 * cp;
    float square = 0.f;
    for (int64_t c = 0; c < p.channels; ++c) square += from[c] * from[c];
    const float norm = std::sqrt(square), inverse = 1.f / (norm > 1e-12f ? norm : 1e-12f);
    for (int64_t c = 0; c < p.channels; ++c) to[c] = from[c] * inverse;
    for (int64_t c = p.channels; c < cp; ++c) to[c] = 0.f;
  }
  pack_transposed(b, cp, nb, cp, 1.f, b_t, bp);
  const uint8_t* flag = p.is_protected ? p.is_protected + item * p.tokens : nullptr;
  const float* cover = p.coverage ? p.coverage + item * p.tokens : nullptr;
  // the position of set A or B that takes no part, -1 for none
  const int64_t a_out = p.parity == 0 ? (p.class_token ? 0 : -1) : (p.distill_token ? 0 : -1);
  const int64_t b_out = p.parity == 0 ? (p.distill_token ? 0 : -1) : (p.class_token ? 0 : -1);
  for (int64_t begin = 0; begin < na; begin += kMatchRows) {
    const int64_t rows = na - begin < kMatchRows ? na - begin : kMatchRows;
    product(rows, bp, cp, a + begin * cp, cp, 1, b_t, bp, s, bp, false);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t i = begin + r, at = 2 * i + p.parity;
      float best = -kInf;
      int32_t to = 0;
      for (int64_t j = 0; j < nb; ++j) {
        float v = s[r * bp + j];
        if (!(v == v)) v = -kInf;
        const int64_t bt = 2 * j + 1 - p.parity;
        if (flag && (flag[at] | flag[bt])) {
          v = !p.forced ? -kInf : v - (cover ? 4.f + 4.f * (cover[at] > cover[bt] ? cover[at] : cover[bt]) : 4.f);
        }
        if (j == b_out) v = -kInf;
        if (v > best) best = v, to = int32_t(j);
      }
      p.best[item * na + i] = i == a_out ? -kInf : best;
      p.dst[item * na + i] = i == a_out ? 0 : to;
    }
  }
}

}  // namespace
}  // namespace tore_fast::cpu
