#include "dpc_knn_cluster.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "density_delta.h"
#include "knn_density.h"

namespace tore_fast::cpu {
namespace {

// Up to here the distances of one image are kept (at most 384^2 * 4 B = 590 KB, about a core's L2) and every one is
// computed once; beyond (and with a mask) memory is linear in the tokens, and what the lists of nearest neighbours leave
// open is so little that a larger matrix would lose: one thread, N = 784, C = 320, 2.6 ms against 2.8 with a matrix.
constexpr int64_t kCachedTokens = 384;
constexpr int32_t kNone = std::numeric_limits<int32_t>::max();

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

// delta of image b from its k nearest neighbours. Where one of them is denser, the nearest such one is the nearest denser
// token at all: whatever lies closer is in the list too. What is left are the peaks of the density (their neighbours are
// all less dense), few and mostly dense: they are compared with the tokens denser than they are.
void delta_of_peaks(const DpcParams& p, int64_t b, const Neighbours& near, float top, const Parallel& within) {
  const int64_t tokens = p.t.tokens, first = b * tokens;
  const float* rho = p.rho + first;
  float* delta = p.delta + first;
  const DensityOrder order(rho, p.t.image_mask(b), tokens, p.strict);
  std::vector<int32_t> peaks, limit;
  for (int64_t place = 0; place < tokens; ++place) {
    const int32_t i = order.ids[place];
    int64_t s = 0;  // ascending distances: the first denser neighbour is the nearest
    const auto listed = [&] { return near.d2[near.at(i, s)] < std::numeric_limits<float>::infinity(); };
    while (s < p.k && listed() && !denser(rho, p.strict, near.ids[near.at(i, s)], i)) ++s;
    if (s < p.k && listed()) {
      delta[i] = std::sqrt(near.d2[near.at(i, s)]);
    } else {
      delta[i] = top;
      if (order.limit[place] == 0) continue;
      peaks.push_back(i);
      limit.push_back(order.limit[place]);
    }
  }
  if (peaks.empty()) return;
  const int64_t rows = *std::max_element(limit.begin(), limit.end()), panels = panels_of(int64_t(peaks.size()));
  limit.resize(panels * kPanel, 0);
  const auto floats = [](int64_t n) { return std::unique_ptr<float[]>(new float[n]); };
  const auto denser_half = floats(panels_of(rows) * kPanel * p.t.channels), of = floats(panels * kPanel * p.t.channels),
             best = floats(panels * kPanel);
  const Panels x = pack(p.t.image(b), order.ids.data(), rows, p.t.channels, denser_half.get(), within);
  const Panels y = pack(p.t.image(b), peaks.data(), int64_t(peaks.size()), p.t.channels, of.get(), within);
  within.run(within.threads, [&](int64_t s) {
    pairwise().nearest_before(x, y, limit.data(), {s, within.threads}, best.get());
  });
  for (size_t i = 0; i < peaks.size(); ++i)
    if (best[i] < std::numeric_limits<float>::infinity()) delta[peaks[i]] = std::sqrt(best[i]);
}

// Rank of every token's nearest centre, again first from the neighbours: where a centre is among them, and nearer than
// the last of them (so that no centre at the same distance is missing), the nearest centre is. `rank` [panels * 16].
void assign_from_neighbours(const DpcParams& p, int64_t b, const Neighbours& near, const int32_t* ranked, int32_t* rank,
                            const Parallel& within) {
  const int64_t tokens = p.t.tokens;
  const uint8_t* mask = p.t.image_mask(b);
  std::vector<int32_t> rank_of(tokens, kNone), open;
  bool listed = true;  // empty tokens are in no list: with one among the centres the lists tell nothing
  for (int64_t r = 0; r < p.num_clusters; ++r) {
    rank_of[ranked[r]] = int32_t(r);
    listed &= !mask || mask[ranked[r]];
  }
  for (int64_t i = 0; i < tokens; ++i) {
    if (rank_of[i] != kNone || (mask && !mask[i])) continue;  // number() knows their cluster
    const float last = near.d2[near.at(i, p.k - 1)];
    float nearest = last;
    rank[i] = kNone;
    for (int64_t s = 0; listed && s < p.k && near.d2[near.at(i, s)] < last; ++s) {
      const float d2 = near.d2[near.at(i, s)];
      if (d2 > nearest) break;
      const int32_t r = rank_of[near.ids[near.at(i, s)]];
      if (r == kNone) continue;
      nearest = d2;
      rank[i] = std::min(rank[i], r);
    }
    if (rank[i] == kNone) open.push_back(int32_t(i));
  }
  if (open.empty()) return;
  const int64_t count = int64_t(open.size()), panels = panels_of(count), pieces = std::min(within.threads, panels);
  std::unique_ptr<float[]> packed(new float[panels * kPanel * p.t.channels]),
      packed_centers(new float[panels_of(p.num_clusters) * kPanel * p.t.channels]);
  std::vector<int32_t> found(panels * kPanel);
  const Panels x = pack(p.t.image(b), open.data(), count, p.t.channels, packed.get(), within);
  const Panels c = pack(p.t.image(b), ranked, p.num_clusters, p.t.channels, packed_centers.get(), within);
  within.run(pieces, [&](int64_t s) {
    pairwise().assign(x, c, panels * s / pieces, panels * (s + 1) / pieces, found.data());
  });
  for (int64_t i = 0; i < count; ++i) rank[open[i]] = found[i];
}

// Everything after the distances to the nearest neighbours, with them alone.
void finish_streamed(const DpcParams& p, int64_t b, const Neighbours& near, float missing, float top,
                     const Parallel& within) {
  std::vector<int32_t> ranked(p.num_clusters), rank(panels_of(p.t.tokens) * kPanel);
  densities(p.t, b, near, missing, p.rho + b * p.t.tokens);
  add_noise(p, b);
  delta_of_peaks(p, b, near, top, within);
  select(p, b, ranked.data());
  assign_from_neighbours(p, b, near, ranked.data(), rank.data(), within);
  number(p, b, ranked.data(), rank.data());
}

// The same with all distances of the image at hand.
void finish_cached(const DpcParams& p, int64_t b, const Neighbours& near, const float* matrix, const Parallel& within) {
  const int64_t tokens = p.t.tokens, panels = panels_of(tokens), stride = panels * kPanel;
  const int64_t pieces = std::min(within.threads, panels);
  std::vector<float> rho(stride, 0.f), best(stride);
  std::vector<int32_t> index(stride), ranked(p.num_clusters);
  const auto columns = [&](int64_t piece) { return panels * piece / pieces * kPanel; };
  densities(p.t, b, near, std::numeric_limits<float>::infinity(), p.rho + b * tokens);
  add_noise(p, b);
  std::copy(p.rho + b * tokens, p.rho + (b + 1) * tokens, rho.begin());
  within.run(pieces, [&](int64_t s) {
    pairwise().delta_of_matrix(matrix, stride, rho.data(), tokens, p.strict, columns(s), columns(s + 1), best.data(),
                               index.data());
  });
  for (int64_t i = 0; i < tokens; ++i)
    p.delta[b * tokens + i] = std::sqrt(index[i] != kNone ? best[i] : near.largest);
  select(p, b, ranked.data());
  within.run(pieces, [&](int64_t s) {
    pairwise().assign_of_matrix(matrix, stride, ranked.data(), p.num_clusters, columns(s), columns(s + 1), index.data());
  });
  number(p, b, ranked.data(), index.data());
}

Neighbours nearest_tokens(const DpcParams& p, int64_t b, bool with_ids, float* matrix, const Parallel& within) {
  std::unique_ptr<float[]> packed(new float[panels_of(p.t.tokens) * kPanel * p.t.channels]);
  const Panels x = pack(p.t.image(b), nullptr, p.t.tokens, p.t.channels, packed.get(), within);
  return neighbours(p.t, b, p.k, x, with_ids, matrix, within);
}

}  // namespace

void dpc_knn_cluster(const DpcParams& p, const Parallel& parallel) {
  const int64_t batch = p.t.batch, stride = panels_of(p.t.tokens) * kPanel;
  const float inf = std::numeric_limits<float>::infinity();
  if (p.t.mask) {  // missing neighbours and peaks of images with empty tokens take the farthest pair of the batch
    std::vector<Neighbours> near(batch);
    std::vector<float> largest(batch);
    parallel.images(batch, [&](int64_t b, const Parallel& within) {
      near[b] = nearest_tokens(p, b, true, nullptr, within);
      largest[b] = near[b].largest;
    });
    const float missing = missing_neighbour(near);
    parallel.images(batch, [&](int64_t b, const Parallel& within) {
      finish_streamed(p, b, near[b], missing, largest_distance(p.t, largest.data(), b), within);
    });
  } else if (p.t.tokens <= kCachedTokens) {
    parallel.images(batch, [&](int64_t b, const Parallel& within) {
      std::unique_ptr<float[]> matrix(new float[stride * stride]);
      const Neighbours near = nearest_tokens(p, b, false, matrix.get(), within);
      finish_cached(p, b, near, matrix.get(), within);
    });
  } else {
    parallel.images(batch, [&](int64_t b, const Parallel& within) {
      const Neighbours near = nearest_tokens(p, b, true, nullptr, within);
      finish_streamed(p, b, near, inf, std::sqrt(near.largest), within);
    });
  }
}

}  // namespace tore_fast::cpu
