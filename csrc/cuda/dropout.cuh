// Counter-based dropout: the same Philox 2x32-10 words as csrc/cpu/dropout.h and ops/reference/mesh_attention.py.
#pragma once
#include <cstdint>

#include "dropout.h"

namespace tore_fast::cuda {

__device__ __forceinline__ float dropout_factor(const Dropout& d, uint32_t key, uint32_t counter, uint32_t group) {
  uint32_t lo = counter, hi = group;
#pragma unroll
  for (int i = 0; i < 10; ++i) {
    const uint64_t product = uint64_t(lo) * 0xD256D193u;
    lo = uint32_t(product >> 32) ^ key ^ hi;
    hi = uint32_t(product);
    key += 0x9E3779B9u;
  }
  return lo >= d.threshold ? d.keep_scale : 0.f;
}

}  // namespace tore_fast::cuda
