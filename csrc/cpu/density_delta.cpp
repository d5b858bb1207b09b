// Tokens are sorted by density first: the denser tokens of any token are then a prefix, so only the lower
// triangle of the distances is computed.
#include "density_delta.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace tore_fast::cpu {
namespace {

// Order of one image: ids[p] the token at place p (real tokens by falling density, then the empty ones),
// limit[p] how many of the first places are denser than it. Both padded to whole panels.
struct Order {
  std::vector<int32_t> ids, limit;

  Order(const float* rho, const uint8_t* mask, int64_t tokens, bool strict)
      : ids(tokens), limit(panels_of(tokens) * kPanel, 0) {
    top_by_key(rho, tokens, tokens, ids.data());
    const auto real = [&](int32_t i) { return !mask || mask[i]; };
    const auto denser = [&](int32_t j, int32_t i) {
      return rho[j] > rho[i] || (!strict && rho[j] == rho[i] && j < i);
    };
    // limits in the order of density: place of the first real token that is not denser
    std::vector<int32_t> reals;
    for (int32_t i : ids)
      if (real(i)) reals.push_back(i);
    std::vector<int32_t> denser_than(tokens);
    int64_t at = 0;
    for (int32_t i : ids) {
      while (at < int64_t(reals.size()) && denser(reals[at], i)) ++at;
      denser_than[i] = int32_t(at);
    }
    std::stable_partition(ids.begin(), ids.end(), real);
    for (int64_t p = 0; p < tokens; ++p) limit[p] = denser_than[ids[p]];
    ids.resize(limit.size(), ids.back());
  }
};

}  // namespace

void density_delta(const Tokens& t, const float* rho, bool strict, float* delta, int64_t* parent,
                   const Parallel& parallel) {
  const int64_t panels = panels_of(t.tokens), padded = panels * kPanel, shares = parallel.shares(t.batch);
  std::vector<float> largest(t.batch);
  const auto scatter = [&](int64_t b, const Order& order, const float* best, const int32_t* nearest) {
    for (int64_t p = 0; p < t.tokens; ++p) {
      const int64_t i = b * t.tokens + order.ids[p];
      const bool found = nearest[p] != std::numeric_limits<int32_t>::max();
      delta[i] = found ? std::sqrt(best[p]) : -1.f;
      if (parent) parent[i] = found ? nearest[p] : -1;
    }
  };
  const auto prepare = [&](int64_t b) {
    return Order(rho + b * t.tokens, t.image_mask(b), t.tokens, strict);
  };
  if (shares == 1) {
    parallel.run(t.batch, [&](int64_t b) {
      const Order order = prepare(b);
      std::vector<float> packed(padded * t.channels), best(padded);
      std::vector<int32_t> nearest(padded);
      const Panels x = pack(t.image(b), order.ids.data(), t.tokens, t.channels, packed.data());
      largest[b] =
          pairwise().delta(x, order.limit.data(), order.ids.data(), {0, 1}, best.data(), nearest.data());
      scatter(b, order, best.data(), nearest.data());
    });
  } else {
    std::vector<float> packed(padded * t.channels), best(padded), tops(shares);
    std::vector<int32_t> nearest(padded);
    for (int64_t b = 0; b < t.batch; ++b) {
      const Order order = prepare(b);
      const Panels x = pack(t.image(b), order.ids.data(), t.tokens, t.channels, packed.data());
      parallel.run(shares, [&](int64_t s) {  // every share writes the panels it owns
        tops[s] = pairwise().delta(x, order.limit.data(), order.ids.data(), {s, shares}, best.data(),
                                   nearest.data());
      });
      largest[b] = *std::max_element(tops.begin(), tops.end());
      scatter(b, order, best.data(), nearest.data());
    }
  }
  for (int64_t b = 0; b < t.batch; ++b) {
    const float top = largest_distance(t, largest.data(), b);
    for (int64_t i = b * t.tokens; i < (b + 1) * t.tokens; ++i)
      if (delta[i] < 0.f) delta[i] = top;
  }
}

}  // namespace tore_fast::cpu
