// Tokens are sorted by density first: the denser tokens of any token are then a prefix, so only the lower
// triangle of the distances is computed.
#include "density_delta.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace tore_fast::cpu {

DensityOrder::DensityOrder(const float* rho, const uint8_t* mask, int64_t tokens, bool strict)
    : ids(tokens), limit(panels_of(tokens) * kPanel, 0) {
  top_by_key(rho, tokens, tokens, ids.data());
  const auto real = [&](int32_t i) { return !mask || mask[i]; };
  // limits in the order of density: place of the first real token that is not denser
  std::vector<int32_t> reals;
  for (int32_t i : ids)
    if (real(i)) reals.push_back(i);
  std::vector<int32_t> denser_than(tokens);
  int64_t at = 0;
  for (int32_t i : ids) {
    while (at < int64_t(reals.size()) && denser(rho, strict, reals[at], i)) ++at;
    denser_than[i] = int32_t(at);
  }
  std::stable_partition(ids.begin(), ids.end(), real);
  for (int64_t p = 0; p < tokens; ++p) limit[p] = denser_than[ids[p]];
  ids.resize(limit.size(), ids.back());
}

void density_delta(const Tokens& t, const float* rho, bool strict, float* delta, int64_t* parent,
                   const Parallel& parallel) {
  const int64_t padded = panels_of(t.tokens) * kPanel;
  std::vector<float> largest(t.batch);
  parallel.images(t.batch, [&](int64_t b, const Parallel& within) {
    const DensityOrder order(rho + b * t.tokens, t.image_mask(b), t.tokens, strict);
    std::vector<float> packed(padded * t.channels), best(padded), tops(within.threads);
    std::vector<int32_t> nearest(padded);
    const Panels x = pack(t.image(b), order.ids.data(), t.tokens, t.channels, packed.data(), within);
    within.run(within.threads, [&](int64_t s) {  // every share writes the panels it owns
      tops[s] = pairwise().delta(x, order.limit.data(), order.ids.data(), {s, within.threads}, best.data(),
                                 nearest.data());
    });
    largest[b] = *std::max_element(tops.begin(), tops.end());
    for (int64_t p = 0; p < t.tokens; ++p) {
      const int64_t i = b * t.tokens + order.ids[p];
      const bool found = nearest[p] != std::numeric_limits<int32_t>::max();
      delta[i] = found ? std::sqrt(best[p]) : -1.f;
      if (parent) parent[i] = found ? nearest[p] : -1;
    }
  });
  for (int64_t b = 0; b < t.batch; ++b) {
    const float top = largest_distance(t, largest.data(), b);
    for (int64_t i = b * t.tokens; i < (b + 1) * t.tokens; ++i)
      if (delta[i] < 0.f) delta[i] = top;
  }
}

}  // namespace tore_fast::cpu
