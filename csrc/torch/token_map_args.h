// Checks of token_map's many optional tensors, shared by the CPU and CUDA bindings.
#pragma once
#include <vector>

#include "stable.h"

namespace tore_fast {

struct TokenMapArgs {
  Tensor x;
  std::optional<Tensor> dst_ptr, dst_cells, src_idx, weight, src_scale;
  int64_t batch, cells, num_src, num_dst, channels, h0, w0, h, w;

  TokenMapArgs(const Tensor& x_in, const std::optional<Tensor>& ptr, const std::optional<Tensor>& dst,
               const std::optional<Tensor>& src, const std::optional<Tensor>& weight_in,
               const std::optional<Tensor>& scale, const std::vector<int64_t>& grid, int64_t rows)
      : x(checked(x_in, x_in.scalar_type(), 3, "token_map: x")) {
    batch = x.size(0), num_src = x.size(1), channels = x.size(2), num_dst = rows;
    STD_TORCH_CHECK(grid.size() == 4, "token_map: grid must be [H0, W0, H, W]");
    h0 = grid[0], w0 = grid[1], h = grid[2], w = grid[3];
    STD_TORCH_CHECK(h >= 1 && w >= 1 && h <= h0 && w <= w0,
                    "token_map: the map must not be finer than the grid");
    cells = src.has_value() ? src->size(1) : (dst.has_value() ? dst->size(1) : h0 * w0);
    STD_TORCH_CHECK(ptr.has_value() == dst.has_value(), "token_map: dst_ptr and dst_cells go together");
    const auto take = [&](const std::optional<Tensor>& t, ScalarType type, int64_t width, const char* what) {
      std::optional<Tensor> out;
      if (!t.has_value()) return out;
      out = checked(t, type, 2, what, x_in);
      STD_TORCH_CHECK(out->size(0) == batch && out->size(1) == width, what, ": must be [B, ", width, "]");
      return out;
    };
    dst_ptr = take(ptr, ScalarType::Int, num_dst + 1, "token_map: dst_ptr");
    dst_cells = take(dst, ScalarType::Int, cells, "token_map: dst_cells");
    src_idx = take(src, ScalarType::Long, cells, "token_map: src_idx");
    weight = take(weight_in, ScalarType::Float, cells, "token_map: weight");
    src_scale = take(scale, ScalarType::Float, num_src, "token_map: src_scale");
    STD_TORCH_CHECK(dst_ptr || (num_dst == h * w && cells == h0 * w0),
                    "token_map: without dst_ptr num_dst must be H * W");
    STD_TORCH_CHECK(src_idx || (num_src == h * w && cells == h0 * w0),
                    "token_map: without src_idx x must have H * W rows");
  }
};

}  // namespace tore_fast
