// Weighted mean over the cells of the initial grid, from source rows to destination rows: see
// ops/token_map.py and the formula in _schema.py. float32, contiguous.
#pragma once
#include <cstdint>
#include <vector>

namespace tore_fast::cpu {

// Cell (r, c) of an h0 x w0 grid belongs to pixel (floor(r * h / h0), floor(c * w / w0)), ratios in float32.
struct CellGrid {
  int64_t h0, w0, h, w;
  std::vector<int32_t> pixel_of;  // [h0 * w0] pixel of a cell
  std::vector<int32_t> row_start,
      col_start;  // [h + 1], [w + 1] first grid row / column of a pixel row / column

  CellGrid(int64_t h0, int64_t w0, int64_t h, int64_t w);
};

struct TokenMapParams {
  const float* x;            // [batch, num_src, channels]
  const int32_t* dst_ptr;    // [batch, num_dst + 1] or nullptr: destinations are the pixels of the grid
  const int32_t* dst_cells;  // [batch, cells]
  const int64_t* src_idx;    // [batch, cells] or nullptr: sources are the pixels of the grid
  const float* weight;       // [batch, cells] or nullptr (1)
  const float* src_scale;    // [batch, num_src] or nullptr (1)
  int64_t cells, num_src, num_dst, channels;
  bool normalize;
  float* out;    // [batch, num_dst, channels]
  float* scale;  // [batch, num_dst]
};

// Rows [begin, end) of the flattened (batch, num_dst) range.
void token_map(const TokenMapParams& p, const CellGrid& grid, int64_t begin, int64_t end);

}  // namespace tore_fast::cpu
