// Tensors of the emulated bindings: every input is copied, every output and workspace is made, between unreadable pages, and
// fresh ones are full of 0xff (NaN).
#pragma once
#include <memory>

#include "../../csrc/torch/stable.h"
#include "machine.h"

namespace tore_fast {

inline Tensor guarded_tensor(int64_t bytes, int64_t offset, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                             const Tensor& like, ScalarType type, const void* from) {
  const auto memory = std::make_shared<emulator::Guarded>(offset + bytes);
  char* data = memory->data() + offset;
  if (from && bytes) std::memcpy(data, from, size_t(bytes));
  return torch::stable::from_blob(data, sizes, strides, like.device(), type, [memory](void*) {
    if (!memory->intact()) emulator::fail("a write beside a tensor");
  });
}

// The strides of `t` stay, and so does the address modulo 16, on which kernels decide about vector loads.
inline Tensor on_device(const Tensor& t) {
  std::vector<int64_t> sizes(t.sizes().begin(), t.sizes().end()), strides(t.strides().begin(), t.strides().end());
  int64_t last = 0;
  for (size_t i = 0; i < sizes.size(); ++i) last += (sizes[i] - 1) * strides[i];
  const int64_t bytes = t.numel() ? (last + 1) * t.element_size() : 0;
  const int64_t offset = int64_t(reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16);
  return guarded_tensor(bytes, offset, sizes, strides, t, t.scalar_type(), t.const_data_ptr());
}

inline Tensor guarded_empty(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type) {
  std::vector<int64_t> strides(sizes.size(), 1);
  int64_t count = 1;
  for (size_t i = sizes.size(); i-- > 0;) strides[i] = count, count *= sizes[i];
  const int64_t element = type == ScalarType::Long || type == ScalarType::Double                                  ? 8
                          : type == ScalarType::Int || type == ScalarType::Float                                  ? 4
                          : type == ScalarType::Half || type == ScalarType::BFloat16 || type == ScalarType::Short ? 2
                                                                                                                  : 1;
  return guarded_tensor(count * element, 0, sizes, strides, like, type, nullptr);
}

}  // namespace tore_fast
