// Counting sort of cluster ids (one block per image), then one warp per cluster sums its tokens in ascending
// order: no float atomics, the same bits on every run.
#pragma once
#include "cluster_merge.h"
#include "common.cuh"

namespace tore_fast::cuda {
namespace {

constexpr int kGroupThreads = 256;
constexpr int kMergeThreads = 128;
constexpr int kMergeWarps = kMergeThreads / 32;
constexpr unsigned kAll = 0xffffffffu;

__device__ __forceinline__ bool in_range(int64_t id, int64_t groups) { return id >= 0 && id < groups; }

// `warps` warps each count and place a run of the items, so that none waits for another. Dynamic shared memory: next, [warps,
// groups], where each warp writes the next item of each group.
__global__ void __launch_bounds__(kGroupThreads)
    group_by_id_kernel(const int64_t* ids, int64_t count, int groups, int warps, int32_t* row_ptrs, int32_t* items_out) {
  TF_DYNAMIC_SHARED(int32_t, next);
  __shared__ int32_t warp_sum[kGroupThreads / 32];
  const int64_t b = blockIdx.x;
  const int64_t* id = ids + b * count;
  int32_t* row_ptr = row_ptrs + b * (groups + 1);
  int32_t* items = items_out + b * count;
  const int thread = int(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int64_t run = cdiv(count, warps * 32) * 32, begin = warp * run, end = min(begin + run, count);
  for (int g = thread; g < warps * groups; g += kGroupThreads) next[g] = 0;
  __syncthreads();
  if (warp < warps) {
    for (int64_t i = begin + lane; i < end; i += 32) {
      const int64_t own = id[i];
      if (in_range(own, groups)) atomicAdd(&next[warp * groups + own], 1);  // integer counts: order does not matter
    }
  }
  __syncthreads();

  int32_t base = 0;  // items in all groups before this round's
  for (int first = 0; first < groups; first += kGroupThreads) {
    const int g = first + thread;
    int32_t size = 0;
    if (g < groups)
      for (int w = 0; w < warps; ++w) size += next[w * groups + g];
    int32_t sum = size;  // inclusive scan of the warp, then of the warps
    for (int step = 1; step < 32; step *= 2) {
      const int32_t left = __shfl_up_sync(kAll, sum, step);
      if (lane >= step) sum += left;
    }
    if (lane == 31) warp_sum[warp] = sum;
    __syncthreads();
    int32_t before = base, all = 0;
    for (int w = 0; w < kGroupThreads / 32; ++w) {
      if (w < warp) before += warp_sum[w];
      all += warp_sum[w];
    }
    if (g < groups) {
      int32_t at = before + sum - size;
      row_ptr[g] = at;
      for (int w = 0; w < warps; ++w) {
        const int32_t own = next[w * groups + g];
        next[w * groups + g] = at;
        at += own;
      }
    }
    base += all;
    __syncthreads();
  }
  if (thread == 0) row_ptr[groups] = base;
  for (int64_t i = base + thread; i < count; i += kGroupThreads) items[i] = -1;
  __syncthreads();

  if (warp >= warps) return;  // a warp places its run in order; equal ids of 32 items line up by lane
  int32_t* mine = next + warp * groups;
  int64_t ahead_id = begin + lane < end ? id[begin + lane] : -1;
  for (int64_t first = begin; first < end; first += 32) {
    const int64_t i = first + lane, own = ahead_id;
    ahead_id = i + 32 < end ? id[i + 32] : -1;  // on its way while this round's items are placed
    const bool valid = in_range(own, groups);
    const unsigned same = __match_any_sync(kAll, valid ? int(own) : -1);
    const int ahead = __popc(same & ((1u << lane) - 1u));
    if (valid) items[mine[own] + ahead] = int32_t(i);
    __syncwarp();
    if (valid && ahead == 0) mine[own] += __popc(same);
    __syncwarp();
  }
}

// One warp per cluster.
template <typename T>
__global__ void __launch_bounds__(kMergeThreads) cluster_merge_fwd_kernel(const ClusterMergeParams p) {
  const int64_t row = int64_t(blockIdx.x) * kMergeWarps + threadIdx.x / 32;
  const int lane = int(threadIdx.x % 32);
  if (row >= p.batch * p.clusters) return;
  const int64_t b = row / p.clusters, c = row % p.clusters;
  const int32_t* ptr = p.row_ptr + b * (p.clusters + 1) + c;
  const int32_t *first = p.items + b * p.tokens + ptr[0], *last = p.items + b * p.tokens + ptr[1];
  const float* weight = p.weight ? p.weight + b * p.tokens : nullptr;
  float total = 0.f;
  for (const int32_t* j = first + lane; j < last; j += 32) total += weight ? weight[*j] : 1.f;
  for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(kAll, total, step);
  total += kMergeEps;
  if (lane == 0) p.total[row] = total;
  for (const int32_t* j = first + lane; j < last; j += 32)
    p.norm_weight[b * p.tokens + *j] = (weight ? weight[*j] : 1.f) / total;

  const T* x = static_cast<const T*>(p.x) + b * p.tokens * p.channels;
  T* y = static_cast<T*>(p.merged) + row * p.channels;
  constexpr int kWide = 4;  // channels per lane and sweep, so that four loads are under way
  for (int64_t f0 = lane; f0 < p.channels; f0 += 32 * kWide) {
    float sum[kWide] = {};
    for (const int32_t* j = first; j < last; ++j) {
      const float share = (weight ? weight[*j] : 1.f) / total;
      const T* from = x + int64_t(*j) * p.channels;
#pragma unroll
      for (int q = 0; q < kWide; ++q) {
        const int64_t f = f0 + 32 * q;
        if (f < p.channels) sum[q] = fmaf(share, to_float(from[f]), sum[q]);
      }
    }
#pragma unroll
    for (int q = 0; q < kWide; ++q) {
      const int64_t f = f0 + 32 * q;
      if (f < p.channels) y[f] = from_float<T>(sum[q]);
    }
  }
}

// Shares of the tokens that belong to no cluster, which the kernel above does not visit.
__global__ void __launch_bounds__(kGroupThreads) cluster_merge_outside_kernel(const ClusterMergeParams p) {
  const int64_t i = int64_t(blockIdx.x) * kGroupThreads + threadIdx.x;
  if (i < p.batch * p.tokens && !in_range(p.cluster[i], p.clusters)) p.norm_weight[i] = 0.f;
}

// One thread per cell of the initial grid.
__global__ void __launch_bounds__(kGroupThreads) cluster_merge_cells_kernel(const ClusterMergeParams p) {
  const int64_t i = int64_t(blockIdx.x) * kGroupThreads + threadIdx.x;
  if (i >= p.batch * p.cells) return;
  const int64_t token = p.idx_token[i], b = i / p.cells;
  const bool valid = in_range(token, p.tokens);
  p.new_idx_token[i] = valid ? p.cluster[b * p.tokens + token] : -1;
  p.new_agg_weight[i] = valid ? p.agg_weight[i] * p.norm_weight[b * p.tokens + token] : 0.f;
}

// One warp per token: dx_j = share_j g_c, dw_j = <g_c, x_j - y_c> / W_c.
template <typename T>
__global__ void __launch_bounds__(kMergeThreads)
    cluster_merge_bwd_kernel(const ClusterMergeBackwardParams p) {
  const int64_t j = int64_t(blockIdx.x) * kMergeWarps + threadIdx.x / 32;
  const int lane = int(threadIdx.x % 32);
  if (j >= p.batch * p.tokens) return;
  const int64_t c = p.cluster[j];
  const bool valid = in_range(c, p.clusters);
  const int64_t row = j / p.tokens * p.clusters + (valid ? c : 0);
  const T* g = static_cast<const T*>(p.grad) + row * p.channels;
  const T* y = static_cast<const T*>(p.merged) + row * p.channels;
  const T* x = static_cast<const T*>(p.x) + j * p.channels;
  T* grad_x = static_cast<T*>(p.grad_x) + j * p.channels;
  const float share = p.norm_weight[j];
  float dot = 0.f;
  for (int64_t f = lane; f < p.channels; f += 32) {
    const float up = valid ? to_float(g[f]) : 0.f;
    grad_x[f] = from_float<T>(valid ? share * up : 0.f);
    if (valid) dot = fmaf(up, to_float(x[f]) - to_float(y[f]), dot);
  }
  for (int step = 16; step > 0; step /= 2) dot += __shfl_xor_sync(kAll, dot, step);
  if (lane == 0) p.grad_weight[j] = valid ? dot / p.total[row] : 0.f;
}

}  // namespace
}  // namespace tore_fast::cuda
