// Checks of mesh_upsample's tensors, shared by the CPU and CUDA bindings.
#pragma once
#include "stable.h"

namespace tore_fast {

struct MeshUpsampleArgs {
  Tensor x, row_ptr, col_idx, values;
  int64_t batch, rows, cols, features;

  MeshUpsampleArgs(const Tensor& x_in, const Tensor& ptr, const Tensor& index, const Tensor& entries)
      : x(checked(x_in, x_in.scalar_type(), 3, "mesh_upsample: x")),
        row_ptr(checked(ptr, ScalarType::Int, 1, "mesh_upsample: row_ptr", x_in)),
        col_idx(checked(index, ScalarType::Int, 1, "mesh_upsample: col_idx", x_in)),
        values(checked(entries, ScalarType::Float, 1, "mesh_upsample: values", x_in)) {
    STD_TORCH_CHECK(row_ptr.size(0) >= 1, "mesh_upsample: row_ptr must have one entry more than there are rows");
    STD_TORCH_CHECK(values.size(0) == col_idx.size(0), "mesh_upsample: values and col_idx differ in length");
    batch = x.size(0), rows = row_ptr.size(0) - 1, cols = x.size(1), features = x.size(2);
  }
};

}  // namespace tore_fast
