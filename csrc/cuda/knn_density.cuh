// Density of every token: each block owns 64 rows, streams all columns past them and keeps the k smallest
// distances of a row in the registers of four lanes.
#pragma once
#include "clustering.cuh"

namespace tore_fast::cuda {
namespace {

// Ascending list; keeps the K smallest.
template <int K>
__device__ __forceinline__ void insert(float (&list)[K], float v) {
#pragma unroll
  for (int s = K - 1; s > 0; --s) list[s] = fmaxf(list[s - 1], fminf(list[s], v));
  list[0] = fminf(list[0], v);
}

// The same with the tokens' indices.
template <int K>
__device__ __forceinline__ void insert(float (&list)[K], int (&ids)[K], float v, int id) {
#pragma unroll
  for (int s = K - 1; s >= 0; --s) {
    const bool here = v < list[s], above = s > 0 && v < list[s > 0 ? s - 1 : 0];
    ids[s] = above ? ids[s > 0 ? s - 1 : 0] : (here ? id : ids[s]);
    list[s] = above ? list[s > 0 ? s - 1 : 0] : (here ? v : list[s]);
  }
}

// What a row's K nearest distances say: its density and, with kIds, its list of neighbours.
template <int K, bool kIds>
__device__ __forceinline__ void write_density(const DensityParams& p, int64_t b, int row, const uint8_t* mask,
                                              const float (&list)[K], const int (&ids)[K]) {
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < K; ++i)
    if (i < p.k && (!mask || list[i] < kInf)) sum += list[i];
  // with a mask knn_density_mask_kernel finishes: neighbours may be missing
  float rho = mask ? sum : expf(-sum / float(p.k));
  if (!mask && p.noise) rho += p.noise[b * p.t.tokens + row];
  p.rho[b * p.t.tokens + row] = rho;
  if (kIds) {
    const int64_t at = (b * p.t.tokens + row) * p.k;
#pragma unroll
    for (int i = 0; i < K; ++i)
      if (i < p.k) p.lists.d2[at + i] = list[i], p.lists.id[at + i] = ids[i];
  }
}

// kIds: the neighbours go to p.lists, too.
template <int K, bool kIds, typename Stage>
__global__ void __launch_bounds__(kTileThreads, 2) knn_density_fwd_kernel(const DensityParams p) {
  __shared__ Stage s;
  __shared__ float d[kTile * kTileStride];
  __shared__ float warp_top[kTileThreads / 32];
  const int tokens = int(p.t.tokens), tiles = (tokens + kTile - 1) / kTile;
  const int64_t b = blockIdx.x / tiles;
  const int row0 = int(blockIdx.x % tiles) * kTile, row = row0 + tile_row();
  const TokenRows rows = image_rows(p.t, b);
  const uint8_t* mask = p.t.mask ? p.t.mask + b * tokens : nullptr;

  if (kIds && row0 == 0 && threadIdx.x < 2) p.lists.open_count[threadIdx.x * p.t.batch + b] = 0;

  float list[K], top = 0.f;
  int ids[K];  // unused, and so gone, without kIds
#pragma unroll
  for (int i = 0; i < K; ++i) list[i] = kInf, ids[i] = kNone;
  for (int column0 = 0; column0 < tokens; column0 += kTile) {
    distance_tile(rows, row0, rows, column0, s, d);
    for (int step = 0; step < kColumnSteps; ++step) {
      const int at = tile_column(step), column = column0 + at;
      if (column >= tokens) continue;
      const float v = d[tile_row() * kTileStride + at];
      if (row < tokens) top = fmaxf(top, v);
      if (v < list[K - 1] && (!mask || mask[column])) {
        if (kIds)
          insert(list, ids, v, column);
        else
          insert(list, v);
      }
    }
  }
  for (int step = 1; step < kThreadsPerRow; step *= 2) {
    float other[K];
    int other_ids[K];
#pragma unroll
    for (int i = 0; i < K; ++i) other[i] = __shfl_xor_sync(0xffffffffu, list[i], step);
    if (kIds) {
#pragma unroll
      for (int i = 0; i < K; ++i) other_ids[i] = __shfl_xor_sync(0xffffffffu, ids[i], step);
#pragma unroll
      for (int i = 0; i < K; ++i) insert(list, ids, other[i], other_ids[i]);
    } else {
#pragma unroll
      for (int i = 0; i < K; ++i) insert(list, other[i]);
    }
  }
  top = block_max(top, warp_top);
  if (threadIdx.x == 0) p.top[blockIdx.x] = top;
  if (row < tokens && threadIdx.x % kThreadsPerRow == 0) write_density<K, kIds>(p, b, row, mask, list, ids);
}

// One warp per token.
__global__ void __launch_bounds__(kTileThreads) token_norm_kernel(const TokensParams t) {
  const int64_t i = int64_t(blockIdx.x) * (kTileThreads / 32) + threadIdx.x / 32;
  if (i >= t.batch * t.tokens) return;
  float sum = 0.f;
  for (int64_t c = threadIdx.x % 32; c < t.channels; c += 32) {
    const float v = load1(t.x, t.dtype, i * t.channels + c);
    sum = fmaf(v, v, sum);
  }
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (threadIdx.x % 32 == 0) t.norm[i] = sum;
}

// One block per image: sums of knn_density_fwd_kernel -> densities, once the largest distance of the batch is
// known.
__global__ void __launch_bounds__(kTileThreads) knn_density_mask_kernel(const DensityParams p) {
  __shared__ float scratch[kTileThreads / 32];
  const int64_t b = blockIdx.x, tokens = p.t.tokens;
  const uint8_t* mask = p.t.mask + b * tokens;
  const int real = count_real(mask, int(tokens), scratch);
  const float far = sqrtf(max_of(p.top, p.t.batch * ((tokens + kTile - 1) / kTile), scratch)) + 1.f;
  const float missing = float(max(p.k - real, 0)) * far * far;
  for (int64_t i = threadIdx.x; i < tokens; i += kTileThreads) {
    float rho = expf(-(p.rho[b * tokens + i] + missing) / float(p.k));
    if (p.noise) rho += p.noise[b * tokens + i];
    p.rho[b * tokens + i] = mask[i] ? rho : 0.f;
  }
}

}  // namespace
}  // namespace tore_fast::cuda
