// The tile of pairwise.cuh for float16/bfloat16 tokens on the matrix units: d2 = |a|^2 + |b|^2 - 2 a.b,
// everything accumulated in float32, the norms from the same rounded values (mixing in exact norms is far
// worse), clamped at 0, exactly 0 for a token with itself. A token that is not a number is near nobody, as in
// the float32 tile.
//
// 8 warps make 16 x 32 outputs each by mma.m16n8k16; both token tiles are staged token-major, 64 channels at
// a time, in rows of 72 elements (144 bytes), which ldmatrix reads without bank conflicts.
#pragma once
#include "pairwise.cuh"
#include "ptx.cuh"

namespace tore_fast::cuda {

constexpr int kMmaChunk = 64;
constexpr int kMmaStride = kMmaChunk + 8;

struct alignas(16) MmaStage {
  uint16_t a[kTile * kMmaStride], b[kTile * kMmaStride];
  float norm_a[kTile], norm_b[kTile];
  int token_a[kTile], token_b[kTile];
};

// Channels k0 .. k0 + 63 of the tile's tokens (already looked up in `token`), zero beyond the end.
__device__ __forceinline__ void stage_mma(const TokenRows& rows, const int* token, int k0, uint16_t* to) {
  const uint16_t* x = static_cast<const uint16_t*>(rows.x);
#pragma unroll
  for (int u = threadIdx.x; u < kTile * kMmaChunk / 8; u += kTileThreads) {
    const int c = (u & 7) * 8, r = u >> 3;
    uint4 v = make_uint4(0, 0, 0, 0);
    if (k0 + c < rows.channels)
      v = *reinterpret_cast<const uint4*>(x + int64_t(token[r]) * rows.channels + k0 + c);
    *reinterpret_cast<uint4*>(to + r * kMmaStride + c) = v;
  }
}

__device__ __forceinline__ int token_of(const TokenRows& rows, int i) {
  i = min(i, rows.count - 1);
  return rows.index ? rows.index[i] : i;
}

// Same contract as the float32 tile. Needs channels % 8 == 0, 16-byte aligned tokens, and their norms.
__device__ __forceinline__ void distance_tile(const TokenRows& a, int a0, const TokenRows& b, int b0,
                                              MmaStage& s, float* d) {
  const int thread = int(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int row0 = 16 * (warp / 2), column0 = 32 * (warp % 2);
  const bool bf16 = a.dtype == DType::kBFloat16;
  __syncthreads();  // everyone is done with the previous tile
  if (thread < 2 * kTile) {
    const bool left = thread < kTile;
    const int r = thread % kTile, token = left ? token_of(a, a0 + r) : token_of(b, b0 + r);
    (left ? s.token_a : s.token_b)[r] = token;
    (left ? s.norm_a : s.norm_b)[r] = a.norm[token];
  }
  float sum[4][4] = {};  // four n8 blocks
  for (int k0 = 0; k0 < a.channels; k0 += kMmaChunk) {
    __syncthreads();
    stage_mma(a, s.token_a, k0, s.a);
    stage_mma(b, s.token_b, k0, s.b);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kMmaChunk; k += 16) {
      uint32_t fa[4], fb[2][4];
      ldmatrix_x4(fa, s.a + (row0 + lane % 16) * kMmaStride + k + 8 * (lane / 16));
#pragma unroll
      for (int pair = 0; pair < 2;
           ++pair) {  // matrices: tokens 0-7 k, tokens 0-7 k+8, tokens 8-15 k, tokens 8-15 k+8
        const int token = column0 + 16 * pair + lane % 8 + 8 * (lane / 16);
        ldmatrix_x4(fb[pair], s.b + token * kMmaStride + k + 8 * (lane / 8 % 2));
      }
#pragma unroll
      for (int n = 0; n < 4; ++n)
        mma_16816(sum[n], fa, fb[n / 2][2 * (n % 2)], fb[n / 2][2 * (n % 2) + 1], bf16);
    }
  }
  const float scale = 1.f / float(a.channels);
#pragma unroll
  for (int n = 0; n < 4; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int r = row0 + lane / 4 + 8 * (e / 2), c = column0 + 8 * n + 2 * (lane % 4) + e % 2;
      float d2 = s.norm_a[r] + s.norm_b[c] - 2.f * sum[n][e];
      if (s.token_a[r] == s.token_b[c]) d2 -= d2;  // 0, but not for a token that is not a number
      d[r * kTileStride + c] = (d2 < 0.f ? 0.f : d2) * scale;
    }
  }
  __syncthreads();
}

}  // namespace tore_fast::cuda
