// delta_i = min of D(i, j) over tokens j denser than i, see ops/density_delta.py. float32, contiguous.
#pragma once
#include "clustering.h"

namespace tore_fast::cpu {

// Order of one image: ids[p] the token at place p (real tokens by falling density, then the empty ones),
// limit[p] how many of the first places are denser than it. Both padded to whole panels.
struct DensityOrder {
  std::vector<int32_t> ids, limit;

  DensityOrder(const float* rho, const uint8_t* mask, int64_t tokens, bool strict);
};

// j is denser than i; equal densities: the lower index, unless strict.
inline bool denser(const float* rho, bool strict, int32_t j, int32_t i) {
  return rho[j] > rho[i] || (!strict && rho[j] == rho[i] && j < i);
}

// delta [batch, tokens]; parent [batch, tokens] or nullptr, -1 where no token is denser.
void density_delta(const Tokens& t, const float* rho, bool strict, float* delta, int64_t* parent,
                   const Parallel& parallel);

}  // namespace tore_fast::cpu
