#include "clustering.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace tore_fast::cpu {

bool Tokens::has_empty(int64_t b) const {
  const uint8_t* m = image_mask(b);
  return m && std::find(m, m + tokens, uint8_t(0)) != m + tokens;
}

Panels pack(const float* x, const int32_t* ids, int64_t count, int64_t channels, float* out,
            const Parallel& parallel) {
  const int64_t panels = panels_of(count), pieces = std::min(parallel.threads, panels);
  parallel.run(pieces, [&](int64_t piece) {
    for (int64_t p = panels * piece / pieces; p < panels * (piece + 1) / pieces; ++p) {
      const float* rows[kPanel];
      for (int64_t l = 0; l < kPanel; ++l) {
        const int64_t i = std::min(p * kPanel + l, count - 1);
        rows[l] = x + (ids ? ids[i] : i) * channels;
      }
      pairwise().pack(rows, channels, out + p * channels * kPanel);
    }
  });
  return Panels{out, panels, channels, 1.f / float(channels)};
}

void top_by_key(const float* key, int64_t n, int64_t count, int32_t* out) {
  std::vector<uint64_t> order(n);  // ascending order of (descending key, index)
  for (int64_t i = 0; i < n; ++i) {
    const float value =
        std::isnan(key[i]) ? -std::numeric_limits<float>::infinity() : key[i] + 0.f;  // -0 -> 0
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    bits = bits >> 31 ? bits : ~(bits | 0x80000000u);
    order[i] = uint64_t(bits) << 32 | uint64_t(i);
  }
  if (count < n) std::nth_element(order.begin(), order.begin() + count, order.end());
  std::sort(order.begin(), order.begin() + count);
  for (int64_t i = 0; i < count; ++i) out[i] = int32_t(order[i] & 0xffffffffu);
}

float largest_distance(const Tokens& t, const float* largest, int64_t b) {
  if (!t.has_empty(b)) return std::sqrt(largest[b]);
  return std::sqrt(*std::max_element(largest, largest + t.batch)) + 1.f;
}

}  // namespace tore_fast::cpu
