// Squared distances between tokens, 64 x 64 at a time: direct float32 differences, so that the matrix is
// exactly symmetric with an exactly zero diagonal.
//
// Why not three-term TF32 on the matrix units, |a|^2 + |b|^2 - 2 a.b with a = big + small (float32 sums, norms by
// the same products, 784 x 64 layer-normed tokens, float64 as the truth; round-to-nearest sums, the hardware
// truncates): the sums' rounding, about 1e-7 |a|^2, stays when a and b are close. Relative error of the distance
// to the nearest token, largest of all tokens (allowed for delta: 5e-6):
//   median nearest d2     direct differences    three-term TF32
//   1.2 (independent)     1.5e-7                2.6e-7
//   0.016 (sigma 0.1)     1.3e-7                2.8e-5
//   0.009 (a walk)        1.2e-7                2.4e-4 (and density 2.4e-6, allowed 2e-6)
//   0.0002 (sigma 0.01)   1.1e-7                2.8e-3
// and 68 to 104 pairs had d(a, b) != d(b, a), which breaks the exact ties of mutual nearest neighbours (k = 2).
// So a float32 distance costs two operations per pair and channel on the plain units: 80.6 G for all pairs at (64, 3136, 64),
// 2.8 ms at 28.7 T/s: arithmetic, not a measurement. The density of many tokens makes few of them this way: products of
// float16 copies discard the other pairs (knn_density_filter.cuh). Delta and the assignment make those of the rows that
// dpc_lists.cuh leaves open.
//
// A block has 256 threads; thread (ty, tx) of 16 x 16 makes the 4 x 4 outputs of rows 4 ty.., columns 4 tx...
// Both token tiles are staged channel-major in shared memory, 32 channels at a time. The groups of four
// tokens are xor-swizzled with the channel group, so that the transposing stores and the 16-byte reads are
// free of bank conflicts.
#pragma once
#include "common.cuh"

namespace tore_fast::cuda {

constexpr int kTile = 64;
constexpr int kTileThreads = 256;
constexpr int kChunk = 32;                            // channels staged at a time
constexpr int kTileStride = kTile + 1;                // row stride of a finished tile
constexpr int kThreadsPerRow = kTileThreads / kTile;  // lanes that share one row of a finished tile
constexpr float kInf = __builtin_huge_valf();

// Tokens of one image; `index` picks rows (nullptr: all in order).
struct TokenRows {
  const void* x;  // [tokens, channels]
  DType dtype;
  bool vectorised;  // channels % 4 == 0 and x aligned to four elements
  int channels;
  const int32_t* index;
  int count;
  const float* norm;  // [tokens] squared norms of the 16-bit tokens, or nullptr (pairwise_mma.cuh)
};

struct alignas(16) TileStage {
  float a[kChunk * kTile], b[kChunk * kTile];
};

__device__ __forceinline__ int64_t element_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

__device__ __forceinline__ float load1(const void* x, DType dtype, int64_t i) {
  if (dtype == DType::kFloat32) return static_cast<const float*>(x)[i];
  if (dtype == DType::kFloat16) return to_float(static_cast<const __half*>(x)[i]);
  return to_float(static_cast<const __nv_bfloat16*>(x)[i]);
}

// Elements i .. i + 3, zero from `left` on.
__device__ __forceinline__ float4 load4(const void* x, DType dtype, bool vectorised, int64_t i, int left) {
  if (vectorised && left >= 4) {
    if (dtype == DType::kFloat32) return *reinterpret_cast<const float4*>(static_cast<const float*>(x) + i);
    const uint2 raw = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(x) + i);
    if (dtype == DType::kFloat16) {
      const float2 lo = __half22float2(*reinterpret_cast<const __half2*>(&raw.x));
      const float2 hi = __half22float2(*reinterpret_cast<const __half2*>(&raw.y));
      return make_float4(lo.x, lo.y, hi.x, hi.y);
    }
    // bfloat16 is the upper half of a float32
    return make_float4(__uint_as_float(raw.x << 16), __uint_as_float(raw.x & 0xffff0000u),
                       __uint_as_float(raw.y << 16), __uint_as_float(raw.y & 0xffff0000u));
  }
  return make_float4(left > 0 ? load1(x, dtype, i) : 0.f, left > 1 ? load1(x, dtype, i + 1) : 0.f,
                     left > 2 ? load1(x, dtype, i + 2) : 0.f, left > 3 ? load1(x, dtype, i + 3) : 0.f);
}

// Where channel c of token r lies in a staged tile of `width` tokens (a multiple of 32).
__device__ __forceinline__ int staged(int c, int r, int width) {
  return c * width + (((r >> 2) ^ ((c >> 2) & 7)) << 2) + (r & 3);
}

// Tokens first .. first + 63 (the last one again beyond the end), channels k0 .. k0 + 31 (zero beyond the
// end).
__device__ __forceinline__ void stage(const TokenRows& rows, int first, int k0, float* to) {
#pragma unroll
  for (int u = threadIdx.x; u < kTile * kChunk / 4; u += kTileThreads) {
    const int c = (u & 7) * 4, r = u >> 3;
    int i = min(first + r, rows.count - 1);
    if (rows.index) i = rows.index[i];
    const float4 v = load4(rows.x, rows.dtype, rows.vectorised, int64_t(i) * rows.channels + k0 + c,
                           rows.channels - k0 - c);
    to[staged(c, r, kTile)] = v.x;
    to[staged(c + 1, r, kTile)] = v.y;
    to[staged(c + 2, r, kTile)] = v.z;
    to[staged(c + 3, r, kTile)] = v.w;
  }
}

// d[row * 65 + column] = ||a_row - b_column||^2 / channels. All threads of the block take part; on return the
// tile is visible to all. The next call may overwrite it: its first barrier comes before any write.
__device__ __forceinline__ void distance_tile(const TokenRows& a, int a0, const TokenRows& b, int b0,
                                              TileStage& s, float* d) {
  const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
  float sum[4][4] = {};
  for (int k0 = 0; k0 < a.channels; k0 += kChunk) {
    __syncthreads();  // everyone is done with the previous chunk (and with the previous tile in d)
    stage(a, a0, k0, s.a);
    stage(b, b0, k0, s.b);
    __syncthreads();
    float part[4][4] = {};  // partial sums of 32 channels keep the rounding of long sums down
#pragma unroll 8
    for (int c = 0; c < kChunk; ++c) {
      const float4 av = *reinterpret_cast<const float4*>(s.a + staged(c, 4 * ty, kTile));
      const float4 bv = *reinterpret_cast<const float4*>(s.b + staged(c, 4 * tx, kTile));
      const float ar[4] = {av.x, av.y, av.z, av.w}, br[4] = {bv.x, bv.y, bv.z, bv.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float diff = ar[i] - br[j];
          part[i][j] = fmaf(diff, diff, part[i][j]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[i][j] += part[i][j];
  }
  const float scale = 1.f / float(a.channels);
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) d[(4 * ty + i) * kTileStride + 4 * tx + j] = sum[i][j] * scale;
  __syncthreads();
}

// Finished tiles are read by four neighbouring lanes per row; lane `sub` reads these columns, ascending in
// `step` (0..15): bank = row + 8 sub + step mod 32, all different in a warp.
__device__ __forceinline__ int tile_row() { return threadIdx.x / kThreadsPerRow; }
__device__ __forceinline__ int tile_column(int step) {
  return 8 * int(threadIdx.x % kThreadsPerRow) + (step & 7) + 32 * (step >> 3);
}
constexpr int kColumnSteps = kTile / kThreadsPerRow;

// The nearer of two candidates (lower index on equal distance), over `lanes` neighbouring lanes.
__device__ __forceinline__ void nearest_of_lanes(float& d, int& index, int lanes) {
  for (int step = 1; step < lanes; step *= 2) {
    const float other_d = __shfl_xor_sync(0xffffffffu, d, step);
    const int other = __shfl_xor_sync(0xffffffffu, index, step);
    if (other_d < d || (other_d == d && other < index)) d = other_d, index = other;
  }
}

// Largest value of the block, in every thread. `scratch`: one float per warp, free to use before and after.
__device__ __forceinline__ float block_max(float v, float* scratch) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, step));
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
  __syncthreads();
  v = scratch[0];
  for (int w = 1; w < int(blockDim.x + 31) / 32; ++w) v = fmaxf(v, scratch[w]);
  __syncthreads();
  return v;
}

}  // namespace tore_fast::cuda
