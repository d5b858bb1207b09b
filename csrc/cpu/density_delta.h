// delta_i = min of D(i, j) over tokens j denser than i, see ops/density_delta.py. float32, contiguous.
#pragma once
#include "clustering.h"

namespace tore_fast::cpu {

// delta [batch, tokens]; parent [batch, tokens] or nullptr, -1 where no token is denser.
void density_delta(const Tokens& t, const float* rho, bool strict, float* delta, int64_t* parent,
                   const Parallel& parallel);

}  // namespace tore_fast::cpu
