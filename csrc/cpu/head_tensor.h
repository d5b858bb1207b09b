// A [batch, head, token, dim] float32 tensor seen through strides (in floats); the last dimension is contiguous.
#pragma once
#include <cstdint>

namespace tore_fast::cpu {

struct HeadTensor {
  const float* data;
  int64_t batch, head, token;
  const float* at(int64_t b, int64_t h) const { return data + b * batch + h * head; }
};

}  // namespace tore_fast::cpu
