// The little of LibTorch's stable ABI that the bindings use. Meaning (shapes against each other) is checked in Python;
// here only what protects memory. Inside an op call nothing of ATen but contiguous/new_empty/zero_.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../cpu/block_cache.h"

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace tore_fast {

#ifdef TORE_FAST_EMULATED
Tensor on_device(const Tensor& t);  // a copy between unreadable pages (tests/cuda_emulator/tensors.h)
#else
inline Tensor on_device(const Tensor& t) { return t; }
#endif

inline std::string device_name(const Tensor& t) {
  if (t.is_cpu()) return "the CPU";
  return (t.is_cuda() ? "CUDA device " : "another kind of device, index ") + std::to_string(t.get_device_index());
}

// Kernels read raw pointers: one tensor on another device would end the process or the CUDA context.
inline void same_device(const Tensor& t, const Tensor& like, const char* what) {
  STD_TORCH_CHECK(t.device() == like.device(), what, ": is on ", device_name(t), ", must be on ", device_name(like),
                  " like the op's first tensor");
}

// `t` contiguous, of this type and number of dimensions, on the device of `like`.
inline Tensor checked(const Tensor& t, ScalarType type, int64_t dim, const char* what, const Tensor& like) {
  same_device(t, like, what);
  STD_TORCH_CHECK(t.scalar_type() == type, what, ": unexpected dtype");
  STD_TORCH_CHECK(t.dim() == dim, what, ": must have ", dim, " dimensions, got ", t.dim());
  return on_device(torch::stable::contiguous(t));
}

inline Tensor checked(const Tensor& t, ScalarType type, int64_t dim, const char* what) {
  return checked(t, type, dim, what, t);
}

inline std::optional<Tensor> checked(const std::optional<Tensor>& t, ScalarType type, int64_t dim, const char* what,
                                     const Tensor& like) {
  if (!t.has_value()) return std::nullopt;
  return checked(*t, type, dim, what, like);
}

template <typename T>
const T* data_or_null(const std::optional<Tensor>& t) {
  return t ? static_cast<const T*>(t->const_data_ptr()) : nullptr;
}

// CPU ops look at every index before a kernel uses it. row_ptr [rows + 1] ascends from 0 to the length of col_idx, whose
// values lie in 0 .. cols - 1.
inline void check_csr(const Tensor& row_ptr, const Tensor& col_idx, int64_t cols, const char* op) {
  const int64_t rows = row_ptr.size(0) - 1, entries = col_idx.size(0);
  const int32_t *ptr = row_ptr.const_data_ptr<int32_t>(), *index = col_idx.const_data_ptr<int32_t>();
  bool ok = ptr[0] == 0 && ptr[rows] == entries;
  for (int64_t i = 0; i < rows; ++i) ok &= ptr[i] <= ptr[i + 1];
  STD_TORCH_CHECK(ok, op, ": row_ptr out of range: must ascend from 0 to the ", entries, " entries of col_idx");
  int32_t low = 0, high = -1;
  for (int64_t i = 0; i < entries; ++i) {
    low = index[i] < low ? index[i] : low;
    high = index[i] > high ? index[i] : high;
  }
  STD_TORCH_CHECK(low >= 0 && high < cols, op, ": col_idx out of range: must lie in 0..", cols - 1, ", got ", low, "..", high);
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

#ifdef TORE_FAST_EMULATED
#include "tensors.h"
#endif
