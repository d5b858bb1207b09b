// y[b, r, :] = sum over row r of values[e] * x[b, col_idx[e], :]. float32, contiguous.
#pragma once
#include <cstdint>

namespace tore_fast::cpu {

struct MeshUpsampleParams {
  const float* x;          // [batch, cols, features]
  const int32_t* row_ptr;  // [rows + 1]
  const int32_t* col_idx;  // [nnz]
  const float* values;     // [nnz]
  float* y;                // [batch, rows, features]
  int64_t rows, cols, features, batch;
};

// Rows [begin, end) of the flattened (batch, row) range.
void mesh_upsample(const MeshUpsampleParams& p, int64_t begin, int64_t end);

}  // namespace tore_fast::cpu
