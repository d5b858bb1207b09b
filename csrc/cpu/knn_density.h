// rho_i = exp(-(1/k) * sum of the k smallest d2(i, .)), see ops/knn_density.py. float32, contiguous.
#pragma once
#include "clustering.h"

namespace tore_fast::cpu {

// rho [batch, tokens]; largest [batch]: the largest d2 of every image.
void knn_density(const Tokens& t, int64_t k, float* rho, float* largest, const Parallel& parallel);

// exp(-mean) of an ascending list of d2 with stride 16; `missing` (d2 of a neighbour that does not exist)
// fills up.
float density_of_list(const float* list, int64_t k, float missing);

}  // namespace tore_fast::cpu
