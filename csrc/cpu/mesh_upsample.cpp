#include "mesh_upsample.h"

namespace tore_fast::cpu {
namespace {

typedef float vec4 __attribute__((vector_size(16)));
typedef float vec4_unaligned __attribute__((vector_size(16), aligned(4)));

// Positions: a row of 3 numbers is read and written as 4. The fourth is the next row's first, which is written later; so
// the last row of a range takes the plain path below (another thread's range may follow). Reading 4 at the last vertex of
// the last item would leave the tensor: there it is read number by number.
template <bool kLastItem>
void position_rows(const MeshUpsampleParams& p, int64_t begin, int64_t end) {
  int64_t r = begin % p.rows;
  const float* x = p.x + begin / p.rows * p.cols * 3;
  float* y = p.y + begin * 3;
  for (int64_t i = begin; i < end; ++i, y += 3) {
    vec4 acc{};
    for (int32_t e = p.row_ptr[r]; e < p.row_ptr[r + 1]; ++e) {
      const int32_t c = p.col_idx[e];
      const float* from = x + int64_t(c) * 3;
      vec4 row;
      if (kLastItem && c == p.cols - 1) {
        row = vec4{from[0], from[1], from[2], 0.f};
      } else {
        row = *reinterpret_cast<const vec4_unaligned*>(from);
      }
      acc += p.values[e] * row;
    }
    *reinterpret_cast<vec4_unaligned*>(y) = acc;
    if (++r == p.rows) r = 0, x += p.cols * 3;
  }
}

// The feature count is a template argument for positions (3): the sum then stays in registers.
template <int kFeatures>
void row_range(const MeshUpsampleParams& p, int64_t begin, int64_t end) {
  const int64_t features = kFeatures > 0 ? kFeatures : p.features;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t b = i / p.rows, r = i % p.rows;
    const float* x = p.x + b * p.cols * features;
    float* y = p.y + i * features;
    if constexpr (kFeatures > 0) {
      float acc[kFeatures] = {};
      for (int32_t e = p.row_ptr[r]; e < p.row_ptr[r + 1]; ++e) {
        const float w = p.values[e];
        const float* src = x + int64_t(p.col_idx[e]) * features;
        for (int f = 0; f < kFeatures; ++f) acc[f] += w * src[f];
      }
      for (int f = 0; f < kFeatures; ++f) y[f] = acc[f];
    } else {
      for (int64_t f = 0; f < features; ++f) y[f] = 0.f;
      for (int32_t e = p.row_ptr[r]; e < p.row_ptr[r + 1]; ++e) {
        const float w = p.values[e];
        const float* src = x + int64_t(p.col_idx[e]) * features;
        for (int64_t f = 0; f < features; ++f) y[f] += w * src[f];
      }
    }
  }
}

}  // namespace

void mesh_upsample(const MeshUpsampleParams& p, int64_t begin, int64_t end) {
  if (p.features == 3 && begin < end) {
    const int64_t last_item = (p.batch - 1) * p.rows, last = end - 1;  // first row of the last item, last row of the range
    const int64_t split = last_item < begin ? begin : last_item > last ? last : last_item;
    position_rows<false>(p, begin, split);
    position_rows<true>(p, split, last);
    row_range<3>(p, last, end);
  } else {
    row_range<0>(p, begin, end);
  }
}

}  // namespace tore_fast::cpu
