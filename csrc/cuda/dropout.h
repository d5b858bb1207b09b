#pragma once
#include <cstdint>

namespace tore_fast::cuda {

struct Dropout {
  const int64_t* seed;  // device memory, so that a captured graph draws anew; null: no dropout
  uint32_t threshold;   // a word below it drops its pair
  float keep_scale;     // 1 / (1 - p)
};

}  // namespace tore_fast::cuda
