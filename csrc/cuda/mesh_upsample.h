#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "common.h"

namespace tore_fast::cuda {

struct MeshUpsampleParams {
  const void* x;           // [batch, cols, features]
  const int32_t* row_ptr;  // [rows + 1]
  const int32_t* col_idx;  // [nnz]
  const float* values;     // [nnz]
  void* y;                 // [batch, rows, features]
  int64_t batch, rows, cols, features;
};

cudaError_t mesh_upsample(const MeshUpsampleParams& p, DType dtype, cudaStream_t stream);

}  // namespace tore_fast::cuda
