// The little of LibTorch's stable ABI that the bindings use. Meaning (shapes against each other) is checked in Python;
// here only what protects memory. Inside an op call nothing of ATen but contiguous/new_empty/zero_ (build.md section 5).
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <cstdlib>
#include <optional>
#include <tuple>
#include <vector>

#include "../cpu/block_cache.h"

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace tore_fast {

inline Tensor checked(const Tensor& t, ScalarType type, int64_t dim, const char* what) {
  STD_TORCH_CHECK(t.scalar_type() == type, what, ": unexpected dtype");
  STD_TORCH_CHECK(t.dim() == dim, what, ": must have ", dim, " dimensions, got ", t.dim());
  return torch::stable::contiguous(t);
}

// An uninitialised float tensor on the CPU, on large pages if it is large (csrc/cpu/block_cache.h); `keep`: its memory
// goes to the next one when it dies.
inline Tensor empty_floats(const Tensor& like, std::vector<int64_t> sizes, bool keep = true) {
  int64_t count = 1;
  for (const int64_t n : sizes) count *= n;
  if (count * sizeof(float) < cpu::kSmallest) return torch::stable::new_empty(like, sizes, ScalarType::Float);
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * sizes[i];
  void* memory = keep ? cpu::take_block(count * sizeof(float)) : cpu::large_pages(count * sizeof(float));
  return torch::stable::from_blob(memory, sizes, strides, like.device(), ScalarType::Float, keep ? &cpu::give_block : &std::free);
}

}  // namespace tore_fast
