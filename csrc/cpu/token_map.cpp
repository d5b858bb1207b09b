#include "token_map.h"

#include <algorithm>

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
  axis(h0, h, row_of, row_start);
  axis(w0, w, col_of, col_start);
}

void token_map(const TokenMapParams& p, const CellGrid& grid, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t b = i / p.num_dst, d = i % p.num_dst;
    const float* x = p.x + b * p.num_src * p.channels;
    const float* weight = p.weight ? p.weight + b * p.cells : nullptr;
    float* out = p.out + i * p.channels;
    std::fill(out, out + p.channels, 0.f);
    float total = 0.f;
    const auto add = [&](int64_t cell) {
      const int64_t src = p.src_idx ? p.src_idx[b * p.cells + cell]
                                    : grid.row_of[cell / grid.w0] * grid.w + grid.col_of[cell % grid.w0];
      const float w = weight ? weight[cell] : 1.f;
      total += w;
      if (src < 0 || src >= p.num_src) return;
      const float factor = p.src_scale ? w * p.src_scale[b * p.num_src + src] : w;
      const float* row = x + src * p.channels;
      for (int64_t f = 0; f < p.channels; ++f) out[f] += factor * row[f];
    };
    if (p.dst_ptr) {
      const int32_t* ptr = p.dst_ptr + b * (p.num_dst + 1) + d;
      const int32_t* cells = p.dst_cells + b * p.cells;
      for (int64_t e = std::max(ptr[0], 0); e < std::min<int64_t>(ptr[1], p.cells); ++e)
        if (cells[e] >= 0 && cells[e] < p.cells) add(cells[e]);
    } else {
      const int64_t r = d / grid.w, c = d % grid.w;
      for (int64_t row = grid.row_start[r]; row < grid.row_start[r + 1]; ++row)
        for (int64_t col = grid.col_start[c]; col < grid.col_start[c + 1]; ++col) add(row * grid.w0 + col);
    }
    const float scale = p.normalize ? 1.f / (total + kEps) : 1.f;
    p.scale[i] = scale;
    if (p.normalize)
      for (int64_t f = 0; f < p.channels; ++f) out[f] *= scale;
  }
}

}  // namespace tore_fast::cpu
