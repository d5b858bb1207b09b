// The later steps of dpc_knn_cluster on many tokens: ranks by counting, numbers of the centres, nearest
// centre.
#pragma once
#include "clustering.cuh"

namespace tore_fast::cuda {
namespace {

constexpr int kRankThreads = 256;

// Order of the scores as unsigned numbers: NaN last, +-0 equal.
__device__ __forceinline__ uint32_t sort_key(float score) {
  if (!(score == score)) score = -kInf;
  const uint32_t bits = __float_as_uint(score + 0.f);  // -0 becomes +0
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// rank of a token = how many tokens precede it (higher score, or the same and a lower index). Counting needs no sort and no
// atomics and is exact for any N. Only the tile of the token's own block has to look at indices: tiles before it count equal
// scores, tiles behind do not. Keys are read four at a time.
__global__ void __launch_bounds__(kRankThreads) dpc_rank_kernel(const DpcParams p) {
  __shared__ __align__(16) uint32_t keys[kRankThreads];
  const int tokens = int(p.t.tokens), blocks = (tokens + kRankThreads - 1) / kRankThreads;
  const int64_t b = blockIdx.x / blocks;
  const int own_first = int(blockIdx.x % blocks) * kRankThreads, i = own_first + int(threadIdx.x);
  const float* score = p.score + b * tokens;
  const uint32_t own = i < tokens ? sort_key(score[i]) : 0u;
  int rank = 0;
  for (int first = 0; first < tokens; first += kRankThreads) {
    __syncthreads();
    const int j = first + int(threadIdx.x);
    keys[threadIdx.x] = j < tokens ? sort_key(score[j]) : 0u;  // 0 is below every key, so it precedes nobody
    __syncthreads();
    if (first == own_first) {
      for (int l = 0; l < kRankThreads; ++l) rank += keys[l] > own || (keys[l] == own && l < int(threadIdx.x));
      continue;
    }
    // `key >= own` before the own tile, `key > own` behind it; no key is the largest number, so own + 1 does not wrap
    const uint32_t least = first < own_first ? own : own + 1u;
#pragma unroll 4
    for (int l = 0; l < kRankThreads; l += 4) {
      const uint4 four = *reinterpret_cast<const uint4*>(keys + l);
      rank += int(four.x >= least) + int(four.y >= least) + int(four.z >= least) + int(four.w >= least);
    }
  }
  if (i >= tokens) return;
  p.rank[b * tokens + i] = rank;
  if (rank < p.clusters) p.ranked[b * p.clusters + rank] = i;
}

// Number of the centre of each rank: the rank itself, or its place by token index.
__global__ void __launch_bounds__(kRankThreads) dpc_place_kernel(const DpcParams p) {
  __shared__ int32_t tokens_of[kRankThreads];
  const int blocks = (p.clusters + kRankThreads - 1) / kRankThreads;
  const int64_t b = blockIdx.x / blocks;
  const int r = int(blockIdx.x % blocks) * kRankThreads + int(threadIdx.x);
  const int32_t* ranked = p.ranked + b * p.clusters;
  const int own = r < p.clusters ? ranked[r] : 0;
  int place = p.by_index ? 0 : r;
  for (int first = 0; p.by_index && first < p.clusters; first += kRankThreads) {
    __syncthreads();
    const int other = first + int(threadIdx.x);
    tokens_of[threadIdx.x] = other < p.clusters ? ranked[other] : 0;
    __syncthreads();
    const int count = min(kRankThreads, p.clusters - first);
    for (int l = 0; l < count; ++l) place += tokens_of[l] < own;
  }
  if (r >= p.clusters) return;
  p.place[b * p.clusters + r] = place;
  p.centers[b * p.clusters + place] = own;
}

// Nearest centre of 64 tokens per block (all, or those the lists left open); columns are the centres in rank order, so the
// first minimum is the lowest rank.
template <typename Stage>
__global__ void __launch_bounds__(kTileThreads, 2) dpc_assign_kernel(const DpcParams p) {
  __shared__ Stage s;
  __shared__ float d[kTile * kTileStride];
  const int tokens = int(p.t.tokens), tiles = (tokens + kTile - 1) / kTile;
  const int64_t b = blockIdx.x / tiles;
  const int row0 = int(blockIdx.x % tiles) * kTile;
  const int count = p.lists.open ? p.lists.open_count[p.t.batch + b] : tokens;
  if (row0 >= count) return;
  const bool used = row0 + tile_row() < count;
  const TokenRows all = image_rows(p.t, b), rows = picked_rows(all, p.lists.open, b, count);
  const int row = token_of(rows, row0 + tile_row());
  TokenRows centers = all;
  centers.index = p.ranked + b * p.clusters;
  centers.count = p.clusters;
  float best = kInf;
  int rank = kNone;
  for (int column0 = 0; column0 < p.clusters; column0 += kTile) {
    distance_tile(rows, row0, centers, column0, s, d);
    for (int step = 0; step < kColumnSteps; ++step) {
      const int at = tile_column(step), column = column0 + at;
      const float v = d[tile_row() * kTileStride + at];
      if (column < p.clusters && v < best) best = v, rank = column;
    }
  }
  nearest_of_lanes(best, rank, kThreadsPerRow);
  if (!used || threadIdx.x % kThreadsPerRow != 0) return;
  const int64_t i = b * tokens + row;
  const bool empty = p.t.mask && !p.t.mask[i];
  if (rank == kNone || empty) rank = 0;
  if (p.rank[i] < p.clusters) rank = p.rank[i];  // a centre belongs to itself
  p.cluster[i] = empty && p.masked < 0 ? -1 : p.place[b * p.clusters + rank];
}

}  // namespace
}  // namespace tore_fast::cuda
