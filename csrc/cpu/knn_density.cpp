#include "knn_density.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace tore_fast::cpu {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<float> penalties(const Tokens& t, int64_t b) {
  std::vector<float> penalty(panels_of(t.tokens) * kPanel, kInf);
  const uint8_t* mask = t.image_mask(b);
  for (int64_t i = 0; i < t.tokens; ++i) penalty[i] = mask && !mask[i] ? kInf : 0.f;
  return penalty;
}

// The list at `from` of a further share into that at `into`: the k nearest of the union, ascending.
void join(Neighbours& into, const Neighbours& from, int64_t at) {
  float d2[32];
  int32_t ids[32];
  const bool named = !into.ids.empty();
  for (int64_t s = 0, i = at, j = at; s < into.k; ++s) {
    const bool left = !(from.d2[j] < into.d2[i]);
    d2[s] = left ? into.d2[i] : from.d2[j];
    if (named) ids[s] = left ? into.ids[i] : from.ids[j];
    (left ? i : j) += kPanel;
  }
  for (int64_t s = 0; s < into.k; ++s) {
    into.d2[at + s * kPanel] = d2[s];
    if (named) into.ids[at + s * kPanel] = ids[s];
  }
}

}  // namespace

Neighbours neighbours(const Tokens& t, int64_t b, int64_t k, const Panels& x, bool with_ids, float* matrix,
                      const Parallel& within) {
  const int64_t size = x.count * k * kPanel, shares = std::min(within.threads, x.count);
  const std::vector<float> penalty = penalties(t, b);
  std::vector<Neighbours> parts(shares);
  for (Neighbours& part : parts) {
    part.k = k;
    part.d2.resize(size);
    part.ids.resize(with_ids ? size : 0);
  }
  within.run(shares, [&](int64_t s) {
    parts[s].largest = pairwise().density(x, penalty.data(), k, {s, shares}, parts[s].d2.data(),
                                          with_ids ? parts[s].ids.data() : nullptr, matrix);
  });
  Neighbours& all = parts[0];
  for (int64_t s = 1; s < shares; ++s) {
    all.largest = std::max(all.largest, parts[s].largest);
    for (int64_t i = 0; i < x.count * kPanel; ++i) join(all, parts[s], all.at(i, 0));
  }
  return std::move(all);
}

float missing_neighbour(const std::vector<Neighbours>& images) {
  float top = 0.f;
  for (const Neighbours& n : images) top = std::max(top, n.largest);
  const float one_further = std::sqrt(top) + 1.f;
  return one_further * one_further;
}

void densities(const Tokens& t, int64_t b, const Neighbours& near, float missing, float* rho) {
  const uint8_t* mask = t.image_mask(b);
  for (int64_t i = 0; i < t.tokens; ++i) {
    double sum = 0;
    for (int64_t s = 0; s < near.k; ++s) {
      const float d2 = near.d2[near.at(i, s)];
      sum += d2 < kInf ? d2 : missing;
    }
    rho[i] = mask && !mask[i] ? 0.f : float(std::exp(-sum / double(near.k)));
  }
}

void knn_density(const Tokens& t, int64_t k, float* rho, const Parallel& parallel) {
  // With a mask the lists wait for the largest distance of the whole batch, which stands for missing neighbours.
  std::vector<Neighbours> waiting(t.mask ? t.batch : 0);
  parallel.images(t.batch, [&](int64_t b, const Parallel& within) {
    std::vector<float> packed(panels_of(t.tokens) * kPanel * t.channels);
    const Panels x = pack(t.image(b), nullptr, t.tokens, t.channels, packed.data(), within);
    Neighbours near = neighbours(t, b, k, x, false, nullptr, within);
    if (t.mask) {
      waiting[b] = std::move(near);
    } else {
      densities(t, b, near, kInf, rho + b * t.tokens);
    }
  });
  if (!t.mask) return;
  const float missing = missing_neighbour(waiting);
  for (int64_t b = 0; b < t.batch; ++b) densities(t, b, waiting[b], missing, rho + b * t.tokens);
}

}  // namespace tore_fast::cpu
