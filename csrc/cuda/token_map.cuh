// Groups of kLanes lanes walk one destination row each. A lane looks one of the row's cells up (source row and factor), shuffles
// hand the cells round in ascending order, and every lane sums kPacks packs of channels: 16-byte loads, several under way, one
// look-up a cell instead of one a cell and channel sweep.
#pragma once
#include "common.cuh"
#include "token_map.h"

namespace tore_fast::cuda {
namespace {

constexpr int kMapThreads = 128;
constexpr unsigned kMapAll = 0xffffffffu;
constexpr float kMapEps = 1e-6f;

// Nearest resize along one axis, the ratio in float32 as in the official code.
__device__ __forceinline__ int pixel_of(int cell, int cells, int pixels) {
  return min(int(float(cell) * (float(pixels) / float(cells))), pixels - 1);
}

// First cell whose pixel is at least `pixel`: a guess in float32, put right by the definition (pixel_of is monotone).
__device__ __forceinline__ int first_cell(int pixel, int cells, int pixels) {
  int at = min(max(int(float(pixel) * (float(cells) / float(pixels))), 0), cells);
  while (at > 0 && pixel_of(at - 1, cells, pixels) >= pixel) --at;
  while (at < cells && pixel_of(at, cells, pixels) < pixel) ++at;
  return at;
}

// The cells of one destination row: list[0 .. count), or a rectangle of `width` columns of the grid.
struct RowCells {
  const int32_t* list;
  int count, top, left, width;

  // Cell n, or -1 where the list names none.
  __device__ int operator()(int n, const TokenMapParams& p) const {
    if (!list) return (top + n / width) * p.w0 + left + n % width;
    const int cell = list[n];
    return cell < p.cells ? cell : -1;
  }
};

__device__ __forceinline__ RowCells cells_of(const TokenMapParams& p, int64_t b, int d) {
  if (p.dst_ptr) {
    const int32_t* ptr = p.dst_ptr + b * (p.num_dst + 1) + d;
    const int first = max(ptr[0], 0);
    return {p.dst_cells + b * p.cells + first, int(min(int64_t(ptr[1]), p.cells)) - first, 0, 0, 1};
  }
  const int r = d / p.w, c = d % p.w;
  const int top = first_cell(r, p.h0, p.h), left = first_cell(c, p.w0, p.w);
  const int width = first_cell(c + 1, p.w0, p.w) - left;
  return {nullptr, (first_cell(r + 1, p.h0, p.h) - top) * width, top, left, width};
}

template <typename T, int kPack>
struct alignas(sizeof(T) * kPack) MapPack {
  T v[kPack];
};

// kPack: channels a load takes (1: any channel count and alignment); kPacks: loads of a lane in one sweep over the channels.
template <typename T, int kPack, int kPacks, int kLanes>
__global__ void __launch_bounds__(kMapThreads) token_map_fwd_kernel(const TokenMapParams p) {
  using Load = MapPack<T, kPack>;
  constexpr int kRows = kMapThreads / kLanes;
  const int64_t rows = p.batch * p.num_dst, row = int64_t(blockIdx.x) * kRows + int(threadIdx.x) / kLanes;
  const int lane = int(threadIdx.x) % kLanes;
  const bool used = row < rows;  // the lanes of a row past the end take part in the shuffles
  int64_t b = 0;
  int d = 0;
  if (used) {  // a 32-bit division is a quarter of a 64-bit one
    b = rows <= 0xffffffffll ? int64_t(uint32_t(row) / uint32_t(p.num_dst)) : row / p.num_dst;
    d = int(row - b * p.num_dst);
  }
  const RowCells cells = used ? cells_of(p, b, d) : RowCells{nullptr, 0, 0, 0, 1};
  const int count = max(cells.count, 0);
  int most = count;  // of the rows of this warp: all its lanes run the same rounds
#pragma unroll
  for (int step = 16; step >= kLanes; step /= 2) most = max(most, __shfl_xor_sync(kMapAll, most, step));

  float scale = 1.f;
  if (p.normalize) {
    float total = 0.f;
    for (int n = lane; n < count; n += kLanes) {
      const int cell = cells(n, p);
      if (cell >= 0) total += p.weight ? p.weight[b * p.cells + cell] : 1.f;
    }
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) total += __shfl_xor_sync(kMapAll, total, step);
    scale = 1.f / (total + kMapEps);
  }
  if (used && lane == 0) p.scale[row] = scale;

  // this lane's cell of the round that starts at cell `first`: where its source row starts, -1 for none, and its factor
  int64_t from = -1;
  float factor = 0.f;
  const auto look_up = [&](int first) {
    from = -1;
    const int cell = first + lane < count ? cells(first + lane, p) : -1;
    if (cell < 0) return;
    const int64_t src = p.src_idx ? p.src_idx[b * p.cells + cell]
                                  : int64_t(pixel_of(cell / p.w0, p.h0, p.h)) * p.w + pixel_of(cell % p.w0, p.w0, p.w);
    if (src < 0 || src >= p.num_src) return;
    factor = (p.weight ? p.weight[b * p.cells + cell] : 1.f) * (p.src_scale ? p.src_scale[b * p.num_src + src] : 1.f);
    from = src * p.channels;
  };
  if (most <= kLanes) look_up(0);

  const int channels = int(p.channels);
  const T* x = static_cast<const T*>(p.x) + b * p.num_src * p.channels;
  T* out = static_cast<T*>(p.out) + row * p.channels;
  for (int sweep = 0; sweep < channels; sweep += kLanes * kPack * kPacks) {
    const int f0 = sweep + lane * kPack;
    float sum[kPacks][kPack] = {};
    for (int first = 0; first < most; first += kLanes) {
      if (most > kLanes) look_up(first);
      const int here = min(most - first, kLanes);
      for (int n = 0; n < here; ++n) {
        const int64_t source = __shfl_sync(kMapAll, from, n, kLanes);
        const float share = __shfl_sync(kMapAll, factor, n, kLanes);
        if (source < 0) continue;
        Load pack[kPacks];
#pragma unroll
        for (int q = 0; q < kPacks; ++q) {
          const int f = f0 + q * kLanes * kPack;
          if (f < channels) pack[q] = *reinterpret_cast<const Load*>(x + source + f);
        }
#pragma unroll
        for (int q = 0; q < kPacks; ++q) {
          if (f0 + q * kLanes * kPack >= channels) continue;
#pragma unroll
          for (int i = 0; i < kPack; ++i) sum[q][i] = fmaf(share, to_float(pack[q].v[i]), sum[q][i]);
        }
      }
    }
#pragma unroll
    for (int q = 0; q < kPacks; ++q) {
      const int f = f0 + q * kLanes * kPack;
      if (!used || f >= channels) continue;
      Load pack;
#pragma unroll
      for (int i = 0; i < kPack; ++i) pack.v[i] = from_float<T>(sum[q][i] * scale);
      *reinterpret_cast<Load*>(out + f) = pack;
    }
  }
}

}  // namespace
}  // namespace tore_fast::cuda
