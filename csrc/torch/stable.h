// The little of LibTorch's stable ABI that the bindings use. Meaning (shapes against each other) is checked in Python;
// here only what protects memory. Inside an op call nothing of ATen but contiguous/new_empty/zero_.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>
#include <tuple>

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace tore_fast {

inline Tensor checked(const Tensor& t, ScalarType type, int64_t dim, const char* what) {
  STD_TORCH_CHECK(t.scalar_type() == type, what, ": unexpected dtype");
  STD_TORCH_CHECK(t.dim() == dim, what, ": must have ", dim, " dimensions, got ", t.dim());
  return torch::stable::contiguous(t);
}

}  // namespace tore_fast
