#include "token_map.h"

#include <algorithm>

#include "row_sum.h"

namespace tore_fast::cpu {
namespace {

constexpr float kEps = 1e-6f;

void axis(int64_t cells, int64_t pixels, std::vector<int32_t>& of, std::vector<int32_t>& start) {
  const float ratio = float(pixels) / float(cells);
  of.resize(cells);
  start.assign(pixels + 1, int32_t(cells));
  for (int64_t i = cells - 1; i >= 0; --i) {
    of[i] = int32_t(std::min(int64_t(float(i) * ratio), pixels - 1));
    start[of[i]] = int32_t(i);
  }
  for (int64_t p = pixels - 1; p >= 0; --p)
    start[p] = std::min(start[p], start[p + 1]);  // a pixel without cells
}

}  // namespace

CellGrid::CellGrid(int64_t h0, int64_t w0, int64_t h, int64_t w) : h0(h0), w0(w0), h(h), w(w) {
  std::vector<int32_t> row_of, col_of;
  axis(h0, h, row_of, row_start);
  axis(w0, w, col_of, col_start);
  pixel_of.reserve(h0 * w0);
  for (int32_t r : row_of)
    for (int32_t c : col_of) pixel_of.push_back(int32_t(r * w + c));
}

void token_map(const TokenMapParams& p, const CellGrid& grid, int64_t begin, int64_t end) {
  std::vector<int32_t> rows;  // what one destination row adds up
  std::vector<float> factors;
  const RowSum add_rows = row_sum();
  for (int64_t i = begin; i < end; ++i) {
    const int64_t b = i / p.num_dst, d = i % p.num_dst;
    const float* weight = p.weight ? p.weight + b * p.cells : nullptr;
    rows.clear();
    factors.clear();
    float total = 0.f;
    const auto add = [&](int64_t cell, int64_t pixel) {
      const int64_t src = p.src_idx ? p.src_idx[b * p.cells + cell] : pixel;
      const float w = weight ? weight[cell] : 1.f;
      total += w;
      if (src < 0 || src >= p.num_src) return;
      rows.push_back(int32_t(src));
      factors.push_back(p.src_scale ? w * p.src_scale[b * p.num_src + src] : w);
    };
    if (p.dst_ptr) {
      const int32_t* ptr = p.dst_ptr + b * (p.num_dst + 1) + d;
      const int32_t* cells = p.dst_cells + b * p.cells;
      for (int64_t e = std::max(ptr[0], 0); e < std::min<int64_t>(ptr[1], p.cells); ++e)
        if (cells[e] >= 0 && cells[e] < p.cells) add(cells[e], p.src_idx ? 0 : grid.pixel_of[cells[e]]);
    } else {
      const int64_t r = d / grid.w, c = d % grid.w;
      for (int64_t row = grid.row_start[r]; row < grid.row_start[r + 1]; ++row)
        for (int64_t col = grid.col_start[c]; col < grid.col_start[c + 1]; ++col) add(row * grid.w0 + col, d);
    }
    const float scale = p.normalize ? 1.f / (total + kEps) : 1.f;
    p.scale[i] = scale;
    add_rows(p.x + b * p.num_src * p.channels, p.channels, rows.data(), factors.data(), int64_t(rows.size()),
             scale, p.out + i * p.channels);
  }
}

}  // namespace tore_fast::cpu
