// Counter-based dropout: Philox 2x32-10 of (row * cols + col, group) under the seed's low 32 bits. The same words as
// tore_fast/ops/reference/mesh_attention.py and csrc/cuda/dropout.cuh.
#pragma once
#include <cstdint>

namespace tore_fast::cpu {

struct Dropout {
  uint32_t key, threshold;  // a word below the threshold drops its pair; threshold 0: no dropout
  float keep_scale;         // 1 / (1 - p)

  float factor(uint32_t counter, uint32_t group) const {
    uint32_t lo = counter, hi = group, k = key;
    for (int i = 0; i < 10; ++i) {
      const uint64_t product = uint64_t(lo) * 0xD256D193u;
      lo = uint32_t(product >> 32) ^ k ^ hi;
      hi = uint32_t(product);
      k += 0x9E3779B9u;
    }
    return lo >= threshold ? keep_scale : 0.f;
  }
};

}  // namespace tore_fast::cpu
