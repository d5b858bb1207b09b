#include "mesh_upsample.h"

namespace tore_fast::cpu {
namespace {

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
  if (p.features == 3) {
    row_range<3>(p, begin, end);
  } else {
    row_range<0>(p, begin, end);
  }
}

}  // namespace tore_fast::cpu
