// Weighted mean over the cells of the initial grid, from source rows to destination rows: see
// ops/token_map.py and the formula in _schema.py.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "common.h"

namespace tore_fast::cuda {

struct TokenMapParams {
  const void* x;             // [batch, num_src, channels]
  const int32_t* dst_ptr;    // [batch, num_dst + 1] or nullptr: destinations are the pixels of the grid
  const int32_t* dst_cells;  // [batch, cells]
  const int64_t* src_idx;    // [batch, cells] or nullptr: sources are the pixels of the grid
  const float* weight;       // [batch, cells] or nullptr (1)
  const float* src_scale;    // [batch, num_src] or nullptr (1)
  int64_t batch, cells, num_src, num_dst, channels;
  int h0, w0, h, w;  // grid of cells, map of pixels
  bool normalize;
  void* out;     // [batch, num_dst, channels]
  float* scale;  // [batch, num_dst]
};
cudaError_t token_map(const TokenMapParams& p, DType dtype, cudaStream_t stream);

}  // namespace tore_fast::cuda
