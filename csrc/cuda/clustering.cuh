// What the clustering kernels share on the device: an image's tokens, who is denser, the largest distance.
#pragma once
#include "clustering.h"
#include "pairwise_mma.cuh"

namespace tore_fast::cuda {

constexpr int kNone = 0x7fffffff;

__device__ __forceinline__ bool is_denser(float rho_j, int j, float rho_i, int i, bool strict) {
  return rho_j > rho_i || (!strict && rho_j == rho_i && j < i);
}

__device__ __forceinline__ TokenRows image_rows(const TokensParams& t, int64_t b) {
  const char* x = static_cast<const char*>(t.x) + b * t.tokens * t.channels * element_size(t.dtype);
  return {x,
          t.dtype,
          t.vectorised,
          int(t.channels),
          nullptr,
          int(t.tokens),
          t.norm ? t.norm + b * t.tokens : nullptr};
}

// The `count` tokens of image b that `open` [batch, tokens] lists; open == nullptr: all.
__device__ __forceinline__ TokenRows picked_rows(TokenRows rows, const int32_t* open, int64_t b, int count) {
  if (open) rows.index = open + b * rows.count;
  rows.count = count;
  return rows;
}

// Calls fn(tag) with the stage type of the tiles: matrix units for 16-bit tokens whose norms are given.
template <typename Fn>
cudaError_t by_stage(const TokensParams& t, Fn&& fn) {
  return t.norm ? fn(static_cast<MmaStage*>(nullptr)) : fn(static_cast<TileStage*>(nullptr));
}

// Real tokens of an image, in every thread.
__device__ __forceinline__ int count_real(const uint8_t* mask, int tokens, float* scratch) {
  int count = 0;
  for (int i = threadIdx.x; i < tokens; i += blockDim.x) count += mask[i] != 0;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) count += __shfl_xor_sync(0xffffffffu, count, step);
  int* counts = reinterpret_cast<int*>(scratch);
  __syncthreads();
  if (threadIdx.x % 32 == 0) counts[threadIdx.x / 32] = count;
  __syncthreads();
  count = 0;
  for (int w = 0; w < int(blockDim.x + 31) / 32; ++w) count += counts[w];
  __syncthreads();
  return count;
}

__device__ __forceinline__ float max_of(const float* values, int64_t count, float* scratch) {
  float v = 0.f;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) v = fmaxf(v, values[i]);
  return block_max(v, scratch);
}

// The distance of a token that has no denser one; also that of an empty column. See cpu/clustering.h.
__device__ __forceinline__ float largest_distance(const TokensParams& t, const float* top, int64_t b,
                                                  float* scratch) {
  const int64_t tiles = (t.tokens + kTile - 1) / kTile;
  const bool empty = t.mask && count_real(t.mask + b * t.tokens, int(t.tokens), scratch) < t.tokens;
  if (!empty) return sqrtf(max_of(top + b * tiles, tiles, scratch));
  return sqrtf(max_of(top, t.batch * tiles, scratch)) + 1.f;
}

}  // namespace tore_fast::cuda
