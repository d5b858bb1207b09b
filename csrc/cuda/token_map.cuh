// One warp per destination row: it walks the row's cells in ascending order, its lanes hold the channels.
#pragma once
#include "common.cuh"
#include "token_map.h"

namespace tore_fast::cuda {
namespace {

constexpr int kMapThreads = 128;
constexpr int kMapWarps = kMapThreads / 32;
constexpr float kMapEps = 1e-6f;

// Nearest resize along one axis, the ratio in float32 as in the official code.
__device__ __forceinline__ int pixel_of(int cell, int cells, int pixels) {
  return min(int(float(cell) * (float(pixels) / float(cells))), pixels - 1);
}

__device__ __forceinline__ int first_cell(int pixel, int cells, int pixels) {
  int at = int((int64_t(pixel) * cells + pixels - 1) / pixels);
  while (at > 0 && pixel_of(at - 1, cells, pixels) >= pixel) --at;
  while (at < cells && pixel_of(at, cells, pixels) < pixel) ++at;
  return at;
}

template <typename T>
__global__ void __launch_bounds__(kMapThreads) token_map_fwd_kernel(const TokenMapParams p) {
  const int64_t row = int64_t(blockIdx.x) * kMapWarps + threadIdx.x / 32;
  const int lane = int(threadIdx.x % 32);
  if (row >= p.batch * p.num_dst) return;
  const int64_t b = row / p.num_dst, d = row % p.num_dst;
  // the row's cells: list[first .. first + count), or a rectangle of `width` columns
  const int32_t* list = p.dst_ptr ? p.dst_cells + b * p.cells : nullptr;
  int64_t first = 0, count = 0;
  int top = 0, left = 0, width = 1;
  if (list) {
    const int32_t* ptr = p.dst_ptr + b * (p.num_dst + 1) + d;
    first = max(ptr[0], 0);
    count = min(int64_t(ptr[1]), p.cells) - first;
  } else {
    const int r = int(d / p.w), c = int(d % p.w);
    top = first_cell(r, p.h0, p.h);
    left = first_cell(c, p.w0, p.w);
    width = first_cell(c + 1, p.w0, p.w) - left;
    count = int64_t(first_cell(r + 1, p.h0, p.h) - top) * width;
  }
  const auto cell_at = [&](int64_t n) -> int64_t {
    if (list) {
      const int64_t cell = list[first + n];
      return cell < p.cells ? cell : -1;
    }
    return int64_t(top + int(n / width)) * p.w0 + left + int(n % width);
  };
  const auto weight_of = [&](int64_t cell) { return p.weight ? p.weight[b * p.cells + cell] : 1.f; };

  float scale = 1.f;
  if (p.normalize) {
    float total = 0.f;
    for (int64_t n = lane; n < count; n += 32) {
      const int64_t cell = cell_at(n);
      if (cell >= 0) total += weight_of(cell);
    }
    for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(0xffffffffu, total, step);
    scale = 1.f / (total + kMapEps);
  }
  if (lane == 0) p.scale[row] = scale;

  const T* x = static_cast<const T*>(p.x) + b * p.num_src * p.channels;
  T* out = static_cast<T*>(p.out) + row * p.channels;
  constexpr int kWide = 4;
  for (int64_t f0 = lane; f0 < p.channels; f0 += 32 * kWide) {
    float sum[kWide] = {};
    for (int64_t n = 0; n < count; ++n) {
      const int64_t cell = cell_at(n);
      if (cell < 0) continue;
      const int64_t src = p.src_idx ? p.src_idx[b * p.cells + cell]
                                    : int64_t(pixel_of(int(cell / p.w0), p.h0, p.h)) * p.w +
                                          pixel_of(int(cell % p.w0), p.w0, p.w);
      if (src < 0 || src >= p.num_src) continue;
      const float factor = weight_of(cell) * (p.src_scale ? p.src_scale[b * p.num_src + src] : 1.f);
#pragma unroll
      for (int q = 0; q < kWide; ++q) {
        const int64_t f = f0 + 32 * q;
        if (f < p.channels) sum[q] = fmaf(factor, to_float(x[src * p.channels + f]), sum[q]);
      }
    }
#pragma unroll
    for (int q = 0; q < kWide; ++q) {
      const int64_t f = f0 + 32 * q;
      if (f < p.channels) out[f] = from_float<T>(sum[q] * scale);
    }
  }
}

}  // namespace
}  // namespace tore_fast::cuda
