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

// Lists of further shares into that of the first: the k smallest of the union, ascending.
void join(float* first, const float* other, int64_t k) {
  float merged[32];
  for (int64_t s = 0, i = 0, j = 0; s < k; ++s) {
    const bool left = !(other[j * kPanel] < first[i * kPanel]);
    merged[s] = left ? first[i++ * kPanel] : other[j++ * kPanel];
  }
  for (int64_t s = 0; s < k; ++s) first[s * kPanel] = merged[s];
}

}  // namespace

float density_of_list(const float* list, int64_t k, float missing) {
  double sum = 0;
  for (int64_t s = 0; s < k; ++s) sum += list[s * kPanel] < kInf ? list[s * kPanel] : missing;
  return float(std::exp(-sum / double(k)));
}

void knn_density(const Tokens& t, int64_t k, float* rho, float* largest, const Parallel& parallel) {
  const int64_t panels = panels_of(t.tokens), shares = parallel.shares(t.batch), list = panels * k * kPanel;
  // With a mask the lists wait for the largest distance of the whole batch, which stands for missing
  // neighbours.
  std::vector<float> waiting(t.mask ? t.batch * list : 0);
  const auto finish = [&](int64_t b, const float* lists, float missing) {
    const uint8_t* mask = t.image_mask(b);
    for (int64_t i = 0; i < t.tokens; ++i) {
      const float* own = lists + i / kPanel * k * kPanel + i % kPanel;
      rho[b * t.tokens + i] = mask && !mask[i] ? 0.f : density_of_list(own, k, missing);
    }
  };
  const auto keep = [&](int64_t b, const std::vector<float>& lists, float top) {
    largest[b] = top;
    if (t.mask) {
      std::copy(lists.begin(), lists.begin() + list, waiting.begin() + b * list);
    } else {
      finish(b, lists.data(), kInf);
    }
  };
  if (shares == 1) {
    parallel.run(t.batch, [&](int64_t b) {
      std::vector<float> packed(panels * kPanel * t.channels), lists(list);
      const Panels x = pack(t.image(b), nullptr, t.tokens, t.channels, packed.data());
      const float top = pairwise().density(x, penalties(t, b).data(), k, {0, 1}, lists.data(), nullptr);
      keep(b, lists, top);
    });
  } else {
    std::vector<float> packed(panels * kPanel * t.channels), lists(shares * list), tops(shares);
    for (int64_t b = 0; b < t.batch; ++b) {
      const Panels x = pack(t.image(b), nullptr, t.tokens, t.channels, packed.data());
      const std::vector<float> penalty = penalties(t, b);
      parallel.run(shares, [&](int64_t s) {
        tops[s] = pairwise().density(x, penalty.data(), k, {s, shares}, lists.data() + s * list, nullptr);
      });
      for (int64_t s = 1; s < shares; ++s)
        for (int64_t p = 0; p < panels; ++p)
          for (int64_t l = 0; l < kPanel; ++l)
            join(lists.data() + p * k * kPanel + l, lists.data() + s * list + p * k * kPanel + l, k);
      keep(b, lists, *std::max_element(tops.begin(), tops.end()));
    }
  }
  if (t.mask && t.batch) {
    const float top = std::sqrt(*std::max_element(largest, largest + t.batch)) + 1.f;
    for (int64_t b = 0; b < t.batch; ++b) finish(b, waiting.data() + b * list, top * top);
  }
}

}  // namespace tore_fast::cpu
