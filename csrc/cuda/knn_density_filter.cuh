// Density of float32 tokens with the matrix units as a filter: the bits of knn_density_fwd_kernel at a fraction of its products.
//
// The streaming kernel of knn_density_mma.cuh runs on tokens rounded to float16 and keeps a row's eight nearest. Their
// distances are made again from the float32 tokens, by the very sums of distance_tile, and the k nearest of them count, if no
// token outside the eight can be nearer. With r the rounded tokens, e_i = |x_i - r_i| and s the squared distance of the filter:
//   | |x_i - x_j| - |r_i - r_j| | <= e_i + e_j                (e is measured, also where a number leaves float16)
//   | s - |r_i - r_j|^2 |         <= E (|r_i|^2 + |r_j|^2)    (sums of the matrix units, kSumError)
// so every token outside the eight is at least  sqrt(s_8 - E (..)) - e_i - max e  away. Rows of which that is not enough, and
// those whose farthest token may be the farthest of the image, are worked out in full, a block for a row.
#pragma once
#include "knn_density_mma.cuh"

namespace tore_fast::cuda {
namespace {

constexpr int kFilterThreads = 256, kFilterLanes = kFilterNear;
// What a float32 distance may be off from the true one, relative: sums of squares by distance_tile, and room.
constexpr float kAbove = 1.f + 2e-5f, kBelow = 1.f - 2e-5f;

// Rounding of s relative to the two norms: a mma of 16 products truncates 17 addends to 2^-23 of the largest, which is at most
// |a| |b| <= (|a|^2 + |b|^2) / 2, and s has it twice; the norms are sums of channels / 32 + 5 terms.
__device__ __forceinline__ float sum_error(int channels) { return (1.2f * float(channels) + 16.f) * 1.1920929e-7f; }

// The bits of distance_tile for one pair.
template <bool kVec>
__device__ __forceinline__ float exact_distance(const float* a, const float* b, int channels) {
  float sum = 0.f;
  for (int k0 = 0; k0 < channels; k0 += kChunk) {
    float part = 0.f;
    const int end = min(channels, k0 + kChunk);
    if (kVec) {
#pragma unroll 4
      for (int c = k0; c < end; c += 4) {
        const float4 u = *reinterpret_cast<const float4*>(a + c), v = *reinterpret_cast<const float4*>(b + c);
        const float d[4] = {u.x - v.x, u.y - v.y, u.z - v.z, u.w - v.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) part = fmaf(d[i], d[i], part);
      }
    } else {
      for (int c = k0; c < end; ++c) {
        const float d = a[c] - b[c];
        part = fmaf(d, d, part);
      }
    }
    sum += part;
  }
  return sum * (1.f / float(channels));
}
__device__ __forceinline__ float exact_distance(const float* a, const float* b, int channels, bool vec) {
  return vec ? exact_distance<true>(a, b, channels) : exact_distance<false>(a, b, channels);
}

template <int K>
__device__ __forceinline__ void write_row(const DensityParams& p, int64_t b, int row, const float (&list)[K], const int (&ids)[K]) {
  if (p.lists.d2)
    write_density<K, true>(p, b, row, nullptr, list, ids);
  else
    write_density<K, false>(p, b, row, nullptr, list, ids);
}

// One warp per token: its float16 copy, zeros up to a multiple of 8 channels, the copy's norm, what the rounding took away.
// The largest of both in the image by integer maxima of their bits: all are positive, and NaN is the largest.
__global__ void __launch_bounds__(kFilterThreads) round_tokens_kernel(const DensityParams p) {
  const DensityFilter& f = p.filter;
  const int64_t i = int64_t(blockIdx.x) * (kFilterThreads / 32) + threadIdx.x / 32;
  const int64_t tiles = (p.t.tokens + kTile - 1) / kTile, here = int64_t(blockIdx.x) * kFilterThreads + threadIdx.x;
  if (here < p.t.batch * tiles) p.top[here] = 0.f;
  if (p.lists.d2 && here < 2 * p.t.batch) p.lists.open_count[here] = 0;
  if (i >= p.t.batch * p.t.tokens) return;
  const float* x = static_cast<const float*>(p.t.x) + i * p.t.channels;
  __half* to = static_cast<__half*>(f.x) + i * f.channels;
  float norm = 0.f, error = 0.f;
  for (int c = int(threadIdx.x % 32); c < f.channels; c += 32) {
    const float v = c < p.t.channels ? x[c] : 0.f;
    const __half h = __float2half_rn(v);
    const float r = __half2float(h), d = v - r;
    to[c] = h;
    norm = fmaf(r, r, norm);
    error = fmaf(d, d, error);
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    norm += __shfl_xor_sync(0xffffffffu, norm, step);
    error += __shfl_xor_sync(0xffffffffu, error, step);
  }
  if (threadIdx.x % 32) return;
  error = sqrtf(error) * kAbove;
  f.norm[i] = norm;
  f.error[i] = error;
  const int64_t b = i / p.t.tokens;
  atomicMax(f.bounds + 2 * b, __float_as_uint(norm));
  atomicMax(f.bounds + 2 * b + 1, __float_as_uint(error));
}

// Eight lanes per row, one for each of its nearest by the filter.
__global__ void __launch_bounds__(kFilterThreads, 4) density_refine_kernel(const DensityParams p) {
  __shared__ float scratch[kFilterThreads / 32];
  constexpr int kRows = kFilterThreads / kFilterLanes;
  const DensityFilter& f = p.filter;
  const int tokens = int(p.t.tokens), channels = int(p.t.channels), lane = int(threadIdx.x % kFilterLanes);
  const int tiles = (tokens + kTile - 1) / kTile, blocks = (tokens + kRows - 1) / kRows;
  const int64_t b = blockIdx.x / blocks;
  const int row = min(int(blockIdx.x % blocks) * kRows + int(threadIdx.x) / kFilterLanes, tokens - 1);
  const bool own = int(blockIdx.x % blocks) * kRows + int(threadIdx.x) / kFilterLanes < tokens;
  const float* x = static_cast<const float*>(p.t.x) + b * tokens * channels;
  const int64_t i = b * tokens + row;
  const float image_top = max_of(f.top + b * tiles, tiles, scratch) * float(f.channels);

  const int id = f.near_id[i * kFilterLanes + lane];
  float v = kInf;
  if (id >= 0 && id < tokens) v = exact_distance(x + int64_t(row) * channels, x + int64_t(id) * channels, channels, p.t.vectorised);
  float list[kFilterLanes];
  int ids[kFilterLanes];
#pragma unroll
  for (int s = 0; s < kFilterLanes; ++s) list[s] = kInf, ids[s] = kNone;
#pragma unroll
  for (int s = 0; s < kFilterLanes; ++s)
    insert(list, ids, __shfl_sync(0xffffffffu, v, s, kFilterLanes), __shfl_sync(0xffffffffu, id, s, kFilterLanes));
  if (!own || lane) return;

  float last = 0.f;  // the k-th nearest of the eight
#pragma unroll
  for (int s = 0; s < kFilterLanes; ++s) last = s < p.k ? fmaxf(last, list[s]) : last;
  const float relative = sum_error(f.channels), norm_top = __uint_as_float(f.bounds[2 * b]);
  const float error_top = __uint_as_float(f.bounds[2 * b + 1]), reach = f.error[i] + error_top;
  const float rounding = relative * (f.norm[i] + norm_top);
  const float beyond = f.near[i * kFilterLanes + kFilterLanes - 1] * float(f.channels);
  const float outside = sqrtf(fmaxf(beyond - rounding, 0.f)) - reach;  // no token outside the eight is nearer
  const bool settled = outside > 0.f && last * float(channels) * kAbove < outside * outside * kBelow;
  const float farthest = sqrtf(fmaxf(f.row_top[i] * float(f.channels) + rounding, 0.f)) + reach;
  const float image_low = sqrtf(fmaxf(image_top - 2.f * relative * norm_top, 0.f)) - 2.f * error_top;
  if (settled && farthest * kAbove < image_low)
    write_row(p, b, row, list, ids);
  else
    f.open[b * tokens + atomicAdd(f.open_count + b, 1)] = row;
}

// The open rows in full; `split` blocks share those of an image.
__global__ void __launch_bounds__(kFilterThreads, 3) density_rows_kernel(const DensityParams p, int split) {
  __shared__ float scratch[kFilterThreads / 32];
  __shared__ float near[kFilterThreads / 32][kFilterNear];
  __shared__ int near_id[kFilterThreads / 32][kFilterNear];
  TF_DYNAMIC_SHARED(float, own);
  const int tokens = int(p.t.tokens), channels = int(p.t.channels), thread = int(threadIdx.x);
  const int64_t b = blockIdx.x / split;
  const int open = p.filter.open_count[b];
  const float* x = static_cast<const float*>(p.t.x) + b * tokens * channels;
  for (int r = int(blockIdx.x % split); r < open; r += split) {
    const int row = p.filter.open[b * tokens + r];
    for (int c = thread; c < channels; c += kFilterThreads) own[c] = x[int64_t(row) * channels + c];
    __syncthreads();
    float list[kFilterNear], top = 0.f;
    int ids[kFilterNear];
#pragma unroll
    for (int s = 0; s < kFilterNear; ++s) list[s] = kInf, ids[s] = kNone;
    for (int column = thread; column < tokens; column += kFilterThreads) {
      const float v = exact_distance(own, x + int64_t(column) * channels, channels, p.t.vectorised);
      top = fmaxf(top, v);
      if (v < list[kFilterNear - 1]) insert(list, ids, v, column);
    }
    for (int step = 1; step < 32; step *= 2) {
      float other[kFilterNear];
      int other_ids[kFilterNear];
#pragma unroll
      for (int s = 0; s < kFilterNear; ++s) {
        other[s] = __shfl_xor_sync(0xffffffffu, list[s], step);
        other_ids[s] = __shfl_xor_sync(0xffffffffu, ids[s], step);
      }
#pragma unroll
      for (int s = 0; s < kFilterNear; ++s) insert(list, ids, other[s], other_ids[s]);
    }
    if (thread % 32 == 0) {
#pragma unroll
      for (int s = 0; s < kFilterNear; ++s) near[thread / 32][s] = list[s], near_id[thread / 32][s] = ids[s];
    }
    top = block_max(top, scratch);  // and a barrier: the warps' lists are there
    if (thread == 0) {
      for (int w = 1; w < kFilterThreads / 32; ++w) {
#pragma unroll
        for (int s = 0; s < kFilterNear; ++s) insert(list, ids, near[w][s], near_id[w][s]);
      }
      write_row(p, b, row, list, ids);
      atomicMax(reinterpret_cast<unsigned*>(p.top + b * ((tokens + kTile - 1) / kTile)), __float_as_uint(top));
    }
    __syncthreads();  // before the next row takes their place
  }
}

}  // namespace
}  // namespace tore_fast::cuda
