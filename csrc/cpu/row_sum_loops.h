// Included by exactly two files, which define TORE_FAST_LANES and TORE_FAST_ROW_SUM; no std containers (see
// pairwise_loops.h).
#include <cstdint>

#include "row_sum.h"

namespace tore_fast::cpu {
namespace {

typedef float Vec __attribute__((vector_size(TORE_FAST_LANES * 4), aligned(4)));

// kVecs vectors of channels at once.
template <int kVecs>
inline __attribute__((always_inline)) void block(const float* x, int64_t channels, const int32_t* rows,
                                                 const float* factors, int64_t count, float scale,
                                                 float* out) {
  Vec sum[kVecs] = {};
  for (int64_t n = 0; n < count; ++n) {
    const float* from = x + rows[n] * channels;
    const float factor = factors[n];
    for (int v = 0; v < kVecs; ++v)
      sum[v] += factor * *reinterpret_cast<const Vec*>(from + v * TORE_FAST_LANES);
  }
  for (int v = 0; v < kVecs; ++v) *reinterpret_cast<Vec*>(out + v * TORE_FAST_LANES) = sum[v] * scale;
}

}  // namespace

void TORE_FAST_ROW_SUM(const float* x, int64_t channels, const int32_t* rows, const float* factors,
                       int64_t count, float scale, float* out) {
  constexpr int64_t kWide = 8 * TORE_FAST_LANES;
  int64_t f = 0;
  for (; f + kWide <= channels; f += kWide) block<8>(x + f, channels, rows, factors, count, scale, out + f);
  for (; f + TORE_FAST_LANES <= channels; f += TORE_FAST_LANES)
    block<1>(x + f, channels, rows, factors, count, scale, out + f);
  for (; f < channels; ++f) {
    float sum = 0.f;
    for (int64_t n = 0; n < count; ++n) sum += factors[n] * x[rows[n] * channels + f];
    out[f] = sum * scale;
  }
}

}  // namespace tore_fast::cpu
