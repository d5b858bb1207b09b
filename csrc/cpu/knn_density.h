// rho_i = exp(-(1/k) * sum of the k smallest d2(i, .)), see ops/knn_density.py. float32, contiguous.
#pragma once
#include "clustering.h"

namespace tore_fast::cpu {

// The k nearest real tokens of every token of one image, ascending, +inf where there are fewer: entry s of token i
// is d2[at(i, s)], and its token ids[at(i, s)] (kept on request).
struct Neighbours {
  int64_t k = 0;
  std::vector<float> d2;
  std::vector<int32_t> ids;
  float largest = 0.f;  // d2 of the farthest pair of the image

  int64_t at(int64_t i, int64_t s) const { return (i / kPanel * k + s) * kPanel + i % kPanel; }
};

// `x` is the image packed in order. matrix: every d2 of the image too, [panels * 16][panels * 16], or nullptr.
Neighbours neighbours(const Tokens& t, int64_t b, int64_t k, const Panels& x, bool with_ids, float* matrix,
                      const Parallel& within);

// d2 that stands for a neighbour that does not exist: (largest distance of the batch + 1)^2.
float missing_neighbour(const std::vector<Neighbours>& images);

// rho [tokens] of image b; 0 for empty tokens.
void densities(const Tokens& t, int64_t b, const Neighbours& near, float missing, float* rho);

// rho [batch, tokens].
void knn_density(const Tokens& t, int64_t k, float* rho, const Parallel& parallel);

}  // namespace tore_fast::cpu
