// Matching: blocks of 32 A tokens walk over all B tokens in 32 x 32 score tiles and keep (best, partner) per A token; the
// [A, B] scores are never stored. A second kernel ranks the A tokens of an item by counting who beats whom (no sort, ties
// to the lower index). Merging: one warp per output row finds its tokens by scanning the owners and adds them up in order.
#pragma once
#include "bipartite_match.h"
#include "common.cuh"

namespace tore_fast::cuda {
namespace {

constexpr int kMatchThreads = 256;
constexpr int kMatchTile = 32;
constexpr int kMatchDepth = 32;
constexpr int kMergeRowThreads = 128;
constexpr unsigned kMatchAll = 0xffffffffu;

// Thread (ty, tx) of 16 x 16 owns a 2 x 2 piece of the tile.
template <typename T>
__global__ void __launch_bounds__(kMatchThreads) bipartite_match_fwd_kernel(const BipartiteMatchParams p) {
  __shared__ float a_tile[kMatchDepth][kMatchTile + 1], b_tile[kMatchDepth][kMatchTile + 1];
  __shared__ float a_inverse[kMatchTile], b_inverse[kMatchTile];
  const int num_a = p.parity ? p.tokens / 2 : p.tokens - p.tokens / 2, num_b = p.tokens - num_a;
  const int tiles = int(cdiv(num_a, kMatchTile));
  const int64_t item = int64_t(blockIdx.x) / tiles;
  const int a0 = int(blockIdx.x % tiles) * kMatchTile;
  const int thread = int(threadIdx.x), lane = thread % 32, warp = thread / 32, tx = thread % 16, ty = thread / 16;
  const T* metric = static_cast<const T*>(p.metric) + item * p.tokens * p.channels;
  const uint8_t* flag = p.is_protected ? p.is_protected + item * p.tokens : nullptr;
  const float* cover = p.coverage ? p.coverage + item * p.tokens : nullptr;
  const int a_out = p.parity == 0 ? (p.class_token ? 0 : -1) : (p.distill_token ? 0 : -1);
  const int b_out = p.parity == 0 ? (p.distill_token ? 0 : -1) : (p.class_token ? 0 : -1);

  // one warp per token: 1 / max(|x|, 1e-12)
  auto norms = [&](int first, int count, int parity, float* inverse) {
    for (int i = warp; i < kMatchTile; i += kMatchThreads / 32) {
      float square = 0.f;
      if (first + i < count) {
        const T* row = metric + int64_t(2 * (first + i) + parity) * p.channels;
        for (int c = lane; c < p.channels; c += 32) square = fmaf(to_float(row[c]), to_float(row[c]), square);
      }
#pragma unroll
      for (int step = 16; step > 0; step /= 2) square += __shfl_xor_sync(kMatchAll, square, step);
      if (lane == 0) inverse[i] = 1.f / fmaxf(sqrtf(square), 1e-12f);
    }
  };
  auto load_tile = [&](int first, int count, int parity, const float* inverse, int c0, float (*tile)[kMatchTile + 1]) {
    for (int i = thread; i < kMatchTile * kMatchDepth; i += kMatchThreads) {
      const int r = i / kMatchDepth, c = i % kMatchDepth;
      const bool ok = first + r < count && c0 + c < p.channels;
      tile[c][r] = ok ? to_float(metric[int64_t(2 * (first + r) + parity) * p.channels + c0 + c]) * inverse[r] : 0.f;
    }
  };

  norms(a0, num_a, p.parity, a_inverse);
  float best[2] = {-INFINITY, -INFINITY};
  int partner[2] = {0, 0};
  for (int b0 = 0; b0 < num_b; b0 += kMatchTile) {
    __syncthreads();
    norms(b0, num_b, 1 - p.parity, b_inverse);
    float acc[2][2] = {};
    for (int c0 = 0; c0 < p.channels; c0 += kMatchDepth) {
      __syncthreads();
      load_tile(a0, num_a, p.parity, a_inverse, c0, a_tile);
      load_tile(b0, num_b, 1 - p.parity, b_inverse, c0, b_tile);
      __syncthreads();
#pragma unroll 8
      for (int c = 0; c < kMatchDepth; ++c) {
        const float x0 = a_tile[c][ty], x1 = a_tile[c][ty + 16], y0 = b_tile[c][tx], y1 = b_tile[c][tx + 16];
        acc[0][0] = fmaf(x0, y0, acc[0][0]);
        acc[0][1] = fmaf(x0, y1, acc[0][1]);
        acc[1][0] = fmaf(x1, y0, acc[1][0]);
        acc[1][1] = fmaf(x1, y1, acc[1][1]);
      }
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const int i = a0 + ty + 16 * m;
#pragma unroll
      for (int n = 0; n < 2; ++n) {  // ascending, so that the first of equal scores stays
        const int j = b0 + tx + 16 * n;
        if (i >= num_a || j >= num_b) continue;
        float s = acc[m][n];
        if (!(s == s)) s = -INFINITY;
        const int at = 2 * i + p.parity, bt = 2 * j + 1 - p.parity;
        if (flag && (flag[at] | flag[bt])) s = p.forced ? s - (cover ? 4.f + 4.f * fmaxf(cover[at], cover[bt]) : 4.f) : -INFINITY;
        if (i == a_out || j == b_out) s = -INFINITY;
        if (s > best[m]) best[m] = s, partner[m] = j;
      }
    }
  }
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int step = 8; step > 0; step /= 2) {  // the 16 threads of a row are half a warp
      const float other = __shfl_xor_sync(kMatchAll, best[m], step);
      const int with = __shfl_xor_sync(kMatchAll, partner[m], step);
      if (other > best[m] || (other == best[m] && with < partner[m])) best[m] = other, partner[m] = with;
    }
    const int i = a0 + ty + 16 * m;
    if (tx == 0 && i < num_a) {
      p.best[item * num_a + i] = best[m];
      p.partner[item * num_a + i] = best[m] == -INFINITY ? 0 : partner[m];
    }
  }
}

// One block per item. Dynamic shared memory: [A] scores, then [A] flags (stays).
__global__ void __launch_bounds__(kMatchThreads) bipartite_rank_kernel(const BipartiteMatchParams p) {
  TF_DYNAMIC_SHARED(float, score);
  const int num_a = p.parity ? p.tokens / 2 : p.tokens - p.tokens / 2;
  int* stays = reinterpret_cast<int*>(score + num_a);
  const int64_t item = int64_t(blockIdx.x);
  for (int i = int(threadIdx.x); i < num_a; i += kMatchThreads) score[i] = p.best[item * num_a + i];
  __syncthreads();
  for (int i = int(threadIdx.x); i < num_a; i += kMatchThreads) {
    const float mine = score[i];
    int rank = 0;
    for (int j = 0; j < num_a; ++j) rank += score[j] > mine || (score[j] == mine && j < i);
    stays[i] = rank >= p.r;
    if (rank < p.r) {
      p.src[item * p.r + rank] = i;
      p.dst[item * p.r + rank] = p.partner[item * num_a + i];
    } else if (!p.sort_by_index) {
      p.unm[item * (num_a - p.r) + rank - p.r] = i;
    }
  }
  if (!p.sort_by_index) return;
  __syncthreads();
  for (int i = int(threadIdx.x); i < num_a; i += kMatchThreads) {
    if (!stays[i]) continue;
    int before = 0;
    for (int j = 0; j < i; ++j) before += stays[j];
    p.unm[item * (num_a - p.r) + before] = i;
  }
}

// One warp per output row; the owners of an item are read once per row, 32 at a time.
template <typename T>
__global__ void __launch_bounds__(kMergeRowThreads) bipartite_merge_fwd_kernel(const BipartiteMergeParams p) {
  const int64_t index = int64_t(blockIdx.x) * (kMergeRowThreads / 32) + threadIdx.x / 32;
  const int lane = int(threadIdx.x % 32);
  if (index >= p.batch * p.rows) return;
  const int64_t item = index / p.rows, row = index % p.rows;
  const int64_t* owner = p.owner + item * p.tokens;
  const float* weight = p.weight ? p.weight + item * p.tokens : nullptr;
  const T* x = static_cast<const T*>(p.x) + item * p.tokens * p.channels;
  T* y = static_cast<T*>(p.y) + index * p.channels;
  constexpr int kWide = 4;  // channels per lane and sweep
  for (int c0 = 0; c0 < p.channels; c0 += 32 * kWide) {
    float sum[kWide] = {}, total = 0.f;
    for (int t0 = 0; t0 < p.tokens; t0 += 32) {
      unsigned members = __ballot_sync(kMatchAll, t0 + lane < p.tokens && owner[t0 + lane < p.tokens ? t0 + lane : 0] == row);
      while (members) {
        const int t = t0 + __ffs(int(members)) - 1;
        members &= members - 1;
        const float w = weight ? weight[t] : 1.f;
        total += w;
#pragma unroll
        for (int i = 0; i < kWide; ++i) {
          const int c = c0 + lane + 32 * i;
          if (c < p.channels) sum[i] = fmaf(w, to_float(x[int64_t(t) * p.channels + c]), sum[i]);
        }
      }
    }
    const float factor = p.average && total != 0.f ? 1.f / total : 1.f;
#pragma unroll
    for (int i = 0; i < kWide; ++i) {
      const int c = c0 + lane + 32 * i;
      if (c < p.channels) y[c] = from_float<T>(sum[i] * factor);
    }
  }
}

}  // namespace
}  // namespace tore_fast::cuda
