#include "dpc_knn_cluster.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "density_delta.h"
#include "knn_density.h"

namespace tore_fast::cpu {
namespace {

// Up to here the distances of one image stay in a scratch block of the thread (at most 384^2 * 4 B = 590 KB,
// about a core's L2) and are computed once; beyond, every step computes its own and memory is linear in the
// tokens.
constexpr int64_t kCachedTokens = 384;

void add_noise(const DpcParams& p, int64_t b) {
  if (!p.noise) return;
  const uint8_t* mask = p.t.image_mask(b);
  for (int64_t i = 0; i < p.t.tokens; ++i) {
    float& rho = p.rho[b * p.t.tokens + i];
    rho = mask && !mask[i] ? 0.f : rho + p.noise[b * p.t.tokens + i];
  }
}

// score of every token; the top num_clusters tokens by (score, lower index) in rank order.
void select(const DpcParams& p, int64_t b, int32_t* ranked) {
  const int64_t first = b * p.t.tokens;
  for (int64_t i = first; i < first + p.t.tokens; ++i) {
    const bool out = p.exclude && p.exclude[i];
    p.score[i] = out ? -std::numeric_limits<float>::infinity() : p.rho[i] * p.delta[i];
  }
  top_by_key(p.score + first, p.t.tokens, p.num_clusters, ranked);
}

// Ranks of nearest centres into final numbers: empty tokens to rank 0 (or -1), centres to themselves, then
// the order.
void number(const DpcParams& p, int64_t b, const int32_t* ranked, const int32_t* rank_of) {
  int64_t* centers = p.centers + b * p.num_clusters;
  int64_t* cluster = p.cluster + b * p.t.tokens;
  const uint8_t* mask = p.t.image_mask(b);
  for (int64_t i = 0; i < p.t.tokens; ++i) cluster[i] = mask && !mask[i] ? 0 : rank_of[i];
  for (int64_t r = 0; r < p.num_clusters; ++r) cluster[ranked[r]] = r;
  std::vector<int32_t> ranks(p.num_clusters), places(p.num_clusters);
  for (int64_t r = 0; r < p.num_clusters; ++r) ranks[r] = int32_t(r);
  if (p.by_index)
    std::sort(ranks.begin(), ranks.end(), [&](int32_t a, int32_t c) { return ranked[a] < ranked[c]; });
  for (int64_t place = 0; place < p.num_clusters; ++place) {
    places[ranks[place]] = int32_t(place);
    centers[place] = ranked[ranks[place]];
  }
  for (int64_t i = 0; i < p.t.tokens; ++i)
    cluster[i] = mask && !mask[i] && p.masked < 0 ? -1 : places[cluster[i]];
}

void cached_image(const DpcParams& p, int64_t b) {
  const int64_t tokens = p.t.tokens, panels = panels_of(tokens), stride = panels * kPanel;
  static thread_local std::vector<float> scratch;
  scratch.resize(stride * (p.t.channels + stride + p.k + 3));
  float* packed = scratch.data();
  float* matrix = packed + stride * p.t.channels;
  float* lists = matrix + stride * stride;
  float* penalty = lists + stride * p.k;
  float* rho = penalty + stride;
  float* best = rho + stride;
  std::vector<int32_t> index(stride), ranked(p.num_clusters);

  const Panels x = pack(p.t.image(b), nullptr, tokens, p.t.channels, packed);
  for (int64_t i = 0; i < stride; ++i) penalty[i] = i < tokens ? 0.f : std::numeric_limits<float>::infinity();
  const float top = std::sqrt(pairwise().density(x, penalty, p.k, {0, 1}, lists, matrix));
  float* out = p.rho + b * tokens;
  for (int64_t i = 0; i < tokens; ++i) {
    const float* own = lists + i / kPanel * p.k * kPanel + i % kPanel;
    out[i] = density_of_list(own, p.k, std::numeric_limits<float>::infinity());
  }
  add_noise(p, b);
  std::copy(out, out + tokens, rho);
  std::fill(rho + tokens, rho + stride, 0.f);
  pairwise().delta_of_matrix(matrix, stride, rho, tokens, p.strict, best, index.data());
  for (int64_t i = 0; i < tokens; ++i) {
    const bool found = index[i] != std::numeric_limits<int32_t>::max();
    p.delta[b * tokens + i] = found ? std::sqrt(best[i]) : top;
  }
  select(p, b, ranked.data());
  pairwise().assign_of_matrix(matrix, stride, ranked.data(), p.num_clusters, index.data());
  number(p, b, ranked.data(), index.data());
}

void streamed(const DpcParams& p, const Parallel& parallel) {
  const int64_t batch = p.t.batch, panels = panels_of(p.t.tokens), stride = panels * kPanel;
  const int64_t shares = parallel.shares(batch);
  std::vector<float> largest(batch);
  knn_density(p.t, p.k, p.rho, largest.data(), parallel);
  for (int64_t b = 0; b < batch; ++b) add_noise(p, b);
  density_delta(p.t, p.rho, p.strict, p.delta, nullptr, parallel);

  const auto assign = [&](int64_t b, const Parallel* within) {
    std::vector<float> packed(stride * p.t.channels),
        packed_centers(panels_of(p.num_clusters) * kPanel * p.t.channels);
    std::vector<int32_t> ranked(p.num_clusters), index(stride);
    select(p, b, ranked.data());
    const Panels x = pack(p.t.image(b), nullptr, p.t.tokens, p.t.channels, packed.data());
    const Panels c = pack(p.t.image(b), ranked.data(), p.num_clusters, p.t.channels, packed_centers.data());
    const int64_t pieces = within ? shares : 1;
    const auto piece = [&](int64_t s) {
      pairwise().assign(x, c, panels * s / pieces, panels * (s + 1) / pieces, index.data());
    };
    within ? within->run(pieces, piece) : piece(0);
    number(p, b, ranked.data(), index.data());
  };
  if (shares == 1) {
    parallel.run(batch, [&](int64_t b) { assign(b, nullptr); });
  } else {
    for (int64_t b = 0; b < batch; ++b) assign(b, &parallel);
  }
}

}  // namespace

void dpc_knn_cluster(const DpcParams& p, const Parallel& parallel) {
  if (p.t.tokens <= kCachedTokens && !p.t.mask) {
    parallel.run(p.t.batch, [&](int64_t b) { cached_image(p, b); });
  } else {
    streamed(p, parallel);
  }
}

}  // namespace tore_fast::cpu
