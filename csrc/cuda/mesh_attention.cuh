// Two kernels per pass, each templated on its role:
//   near:  one warp per vertex row. Scores against the J joint rows come from shared memory (a lane per joint), scores
//          against the <= 11 neighbours from coalesced row reads (lanes over D, four rows per butterfly); one softmax over both.
//   strip: one block per head does all J joint rows against all tokens; the J x T scores live in shared memory.
// Backward recomputes the weights from lse. Role kQuery walks query rows (dq), role kKey walks key rows over the
// transposed pattern (dk, dv): every output row has one owner, sums run in a fixed order, no atomics.
#pragma once
#include "common.cuh"
#include "dropout.cuh"
#include "mesh_attention.h"

namespace tore_fast::cuda {
namespace {

constexpr int kMeshThreads = 128;
constexpr int kMeshWarps = kMeshThreads / 32;
constexpr int kMeshRows = 64;  // vertex rows per block: the joint strip is loaded once for all of them
constexpr unsigned kMeshAll = 0xffffffffu;

enum class MeshRole { kForward, kQuery, kKey };

template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T v[N];
};

// out[i] = row[d + i], 0 beyond dim. `vec`: rows are aligned for packs of 4 and dim is a multiple of 4.
template <typename T, int N>
__device__ __forceinline__ void load_row(const T* row, int d, int dim, bool vec, float* out) {
  if (vec) {
    if (d < dim) {
      const Pack<T, N> p = *reinterpret_cast<const Pack<T, N>*>(row + d);
#pragma unroll
      for (int i = 0; i < N; ++i) out[i] = to_float(p.v[i]);
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) out[i] = 0.f;
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) out[i] = d + i < dim ? to_float(row[d + i]) : 0.f;
  }
}

template <typename T, int N>
__device__ __forceinline__ void store_row(T* row, int d, int dim, const float* v) {
#pragma unroll
  for (int i = 0; i < N; ++i)
    if (d + i < dim) row[d + i] = from_float<T>(v[i]);
}

__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) v = fmaxf(v, __shfl_xor_sync(kMeshAll, v, step));
  return v;
}

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(kMeshAll, v, step);
  return v;
}

// Sums of four values over the warp in six exchanges: the lane gets the sum of value (lane / 16) + 2 * (lane / 8 % 2).
__device__ __forceinline__ float reduce4(const float* a, int lane) {
  const bool hi = lane & 16, mid = lane & 8;
  const float x = (hi ? a[1] : a[0]) + __shfl_xor_sync(kMeshAll, hi ? a[0] : a[1], 16);
  const float z = (hi ? a[3] : a[2]) + __shfl_xor_sync(kMeshAll, hi ? a[2] : a[3], 16);
  float s = (mid ? z : x) + __shfl_xor_sync(kMeshAll, mid ? x : z, 8);
#pragma unroll
  for (int step = 4; step > 0; step /= 2) s += __shfl_xor_sync(kMeshAll, s, step);
  return s;
}

template <typename T>
struct HeadRows {
  const T* data;
  int64_t stride;
  __device__ const T* operator[](int64_t i) const { return data + i * stride; }
};

template <typename T>
__device__ __forceinline__ HeadRows<T> head_rows(const HeadTensor& t, int64_t b, int h) {
  return {static_cast<const T*>(t.data) + b * t.batch + h * t.head, t.token};
}

// rows 0 .. count of a head into shared memory [count, kDim + 4], as float times factor.
template <typename T, int kDim>
__device__ __forceinline__ void load_strip(const HeadRows<T>& rows, int count, int dim, bool vec, float factor, float* to) {
  constexpr int kPacks = kDim / 4;
  for (int i = int(threadIdx.x); i < count * kPacks; i += kMeshThreads) {
    const int r = i / kPacks, d = i % kPacks * 4;
    float v[4];
    load_row<T, 4>(rows[r], d, dim, vec, v);
#pragma unroll
    for (int c = 0; c < 4; ++c) to[r * (kDim + 4) + d + c] = factor * v[c];
  }
}

template <int kDim>
__device__ __forceinline__ float shared_dot(const float* a, const float* b) {
  float s = 0.f;
#pragma unroll 4
  for (int d = 0; d < kDim; d += 4) {
    const float4 x = *reinterpret_cast<const float4*>(a + d), y = *reinterpret_cast<const float4*>(b + d);
    s = fmaf(x.x, y.x, fmaf(x.y, y.y, fmaf(x.z, y.z, fmaf(x.w, y.w, s))));
  }
  return s;
}

template <int kDim>
constexpr int64_t near_shared(int joints, bool backward) {
  return int64_t(sizeof(float)) * (2 * joints * (kDim + 4) + kMeshWarps * (2 * kDim + (backward ? 4 : 2) * 64));
}

// Dot products of x (one value pack per lane) with up to 32 gathered rows; slot e of `scores` gets row col[e].
template <typename T, int kPack>
__device__ __forceinline__ void gathered_scores(const float* x, const HeadRows<T>& rows, const int32_t* col, int count,
                                                int d, int dim, bool vec, int lane, float* scores) {
  for (int e = 0; e < count; e += 4) {
    float part[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float y[kPack];
      load_row<T, kPack>(rows[col[e + i < count ? e + i : count - 1]], d, dim, vec, y);
      part[i] = 0.f;
#pragma unroll
      for (int c = 0; c < kPack; ++c) part[i] = fmaf(x[c], y[c], part[i]);
    }
    const float s = reduce4(part, lane);
    if (lane % 8 == 0) scores[e + lane / 16 + 2 * (lane / 8 % 2)] = s;
  }
}

// No smallest number of blocks: left alone, ptxas takes 40 to 56 registers (9 to 12 blocks per multiprocessor, which hide
// the latency of the gathers) at the price of 8 bytes of stack in 4 of 27 variants (sm_90). A bound of 6 or 8 blocks
// made it take 64 to 80 registers: fewer blocks for no spill in 10 variants and larger ones in others.
template <typename T, int kDim, MeshRole kRole>
__global__ void __launch_bounds__(kMeshThreads) mesh_attention_near_kernel(const MeshAttentionParams p, bool vec) {
  constexpr bool kBackward = kRole != MeshRole::kForward;
  constexpr int kPack = kDim >= 64 ? kDim / 32 : 1;  // dimensions a lane owns
  TF_DYNAMIC_SHARED(float, shared);
  const int tiles = int(cdiv(p.vertices, kMeshRows)), lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32);
  const int64_t head_index = int64_t(blockIdx.x) / tiles;
  const int64_t b = head_index / p.heads;
  const int h = int(head_index % p.heads), tile = int(blockIdx.x % tiles), joints = p.joints;
  const int64_t tokens = joints + p.vertices;
  // own: the rows this block walks; other: the rows they are paired with. (1: scores, 2: values or their gradients)
  const HeadRows<T> q = head_rows<T>(p.q, b, h), k = head_rows<T>(p.k, b, h), v = head_rows<T>(p.v, b, h);
  const HeadRows<T> g = kBackward ? head_rows<T>(p.grad, b, h) : q;
  const HeadRows<T> own1 = kRole == MeshRole::kKey ? k : q, own2 = kRole == MeshRole::kKey ? v : g;
  const HeadRows<T> other1 = kRole == MeshRole::kKey ? q : k, other2 = kRole == MeshRole::kKey ? g : v;
  const int32_t* row_ptr = kRole == MeshRole::kKey ? p.t_row_ptr : p.row_ptr;
  const int32_t* col_idx = kRole == MeshRole::kKey ? p.t_col_idx : p.col_idx;
  const float* lse = kBackward ? p.lse_in + head_index * tokens : nullptr;
  const float* delta = kBackward ? p.delta + head_index * tokens : nullptr;
  const uint32_t key = p.dropout.seed ? uint32_t(uint64_t(*p.dropout.seed)) : 0u, group = uint32_t(head_index);

  float* strip1 = shared;
  float* strip2 = strip1 + joints * (kDim + 4);
  float* mine = strip2 + joints * (kDim + 4) + warp * (2 * kDim + (kBackward ? 4 : 2) * 64);
  float *x1 = mine, *x2 = mine + kDim;  // this warp's own row
  float* w = mine + 2 * kDim;           // [64] weights: slots 0..31 joints, 32..63 neighbours
  int32_t* token = reinterpret_cast<int32_t*>(w + 64);  // [64] the tokens of the slots
  float* ds = w + 128;                  // [64] backward: score gradients
  float* dp = w + 192;                  // [64] backward: gradients of the weights
  load_strip<T, kDim>(other1, joints, p.dim, vec, 1.f, strip1);
  load_strip<T, kDim>(other2, joints, p.dim, vec, 1.f, strip2);
  __syncthreads();

  const int d = lane * kPack;
  for (int r = tile * kMeshRows + warp; r < min(p.vertices, (tile + 1) * kMeshRows); r += kMeshWarps) {
    const int64_t own = joints + r;
    float a1[kPack], a2[kPack];
    load_row<T, kPack>(own1[own], d, p.dim, vec, a1);
    if (kBackward) load_row<T, kPack>(own2[own], d, p.dim, vec, a2);
#pragma unroll
    for (int c = 0; c < kPack; ++c) {
      a1[c] *= p.scale;
      if (d < kDim) x1[d + c] = a1[c];
      if (kBackward && d < kDim) x2[d + c] = a2[c];
    }
    __syncwarp();
    const int32_t* col = col_idx + row_ptr[r];
    const int degree = row_ptr[r + 1] - row_ptr[r];
    float top = -INFINITY, total = 0.f, sum1[kPack] = {}, sum2[kPack] = {};
    // in practice one round: up to 32 joints and 32 neighbours at a time, running maximum and sum across rounds
    for (int first = 0; first < max(joints, degree); first += 32) {
      const int nj = min(max(joints - first, 0), 32), ne = min(max(degree - first, 0), 32);
      float s[2] = {-INFINITY, -INFINITY}, gw[2] = {};
      if (lane < nj) {
        s[0] = shared_dot<kDim>(x1, strip1 + (first + lane) * (kDim + 4));
        if (kBackward) gw[0] = shared_dot<kDim>(x2, strip2 + (first + lane) * (kDim + 4));
      }
      const HeadRows<T> near1{other1[joints], other1.stride}, near2{other2[joints], other2.stride};
      if (ne > 0) {
        gathered_scores<T, kPack>(a1, near1, col + first, ne, d, p.dim, vec, lane, w + 32);
        if (kBackward) gathered_scores<T, kPack>(a2, near2, col + first, ne, d, p.dim, vec, lane, dp + 32);
      }
      __syncwarp();
      if (lane < ne) {
        s[1] = w[32 + lane];
        if (kBackward) gw[1] = dp[32 + lane];
      }
      const int slot_token[2] = {first + lane, lane < ne ? joints + col[first + lane] : 0};
      float factor = 1.f;
      if (!kBackward) {
        const float new_top = fmaxf(top, warp_max(fmaxf(s[0], s[1])));
        const float shift = new_top == -INFINITY ? 0.f : new_top;
        factor = expf(top - shift);
        s[0] = expf(s[0] - shift);
        s[1] = expf(s[1] - shift);
        total = total * factor + warp_sum(s[0] + s[1]);
        top = new_top;
      }
      __syncwarp();
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int slot = half * 32 + lane;
        const bool used = half ? lane < ne : lane < nj;
        const int64_t other = slot_token[half];
        float keep = 1.f;
        if (p.dropout.seed && used) {
          const int64_t query = kRole == MeshRole::kKey ? other : own, with = kRole == MeshRole::kKey ? own : other;
          keep = dropout_factor(p.dropout, key, uint32_t(query * tokens + with), group);
        }
        if (kBackward) {
          const int64_t query = kRole == MeshRole::kKey && used ? other : own;
          const float l = lse[query];
          const float weight = used && l > -INFINITY ? expf(s[half] - l) : 0.f;
          ds[slot] = weight * (keep * gw[half] - delta[query]) * p.scale;
          w[slot] = weight * keep;
        } else {
          w[slot] = s[half] * keep;
        }
        token[slot] = int32_t(other);
      }
      __syncwarp();
#pragma unroll
      for (int c = 0; c < kPack; ++c) sum2[c] *= factor;
      const int dj = d < kDim ? d : 0;
      for (int i = 0; i < nj; ++i) {
#pragma unroll
        for (int c = 0; c < kPack; ++c) {
          if (kBackward) sum1[c] = fmaf(ds[i], strip1[(first + i) * (kDim + 4) + dj + c], sum1[c]);
          if (kRole != MeshRole::kQuery) sum2[c] = fmaf(w[i], strip2[(first + i) * (kDim + 4) + dj + c], sum2[c]);
        }
      }
      for (int i = 32; i < 32 + ne; ++i) {
        float y[kPack];
        if (kBackward) {
          load_row<T, kPack>(other1[token[i]], d, p.dim, vec, y);
#pragma unroll
          for (int c = 0; c < kPack; ++c) sum1[c] = fmaf(ds[i], y[c], sum1[c]);
        }
        if (kRole != MeshRole::kQuery) {
          load_row<T, kPack>(other2[token[i]], d, p.dim, vec, y);
#pragma unroll
          for (int c = 0; c < kPack; ++c) sum2[c] = fmaf(w[i], y[c], sum2[c]);
        }
      }
      __syncwarp();
    }
    const int64_t at = ((b * tokens + own) * p.heads + h) * p.dim;
    if (kRole == MeshRole::kForward) {
      const bool none = top == -INFINITY;
      const float inverse = none ? 0.f : 1.f / total;
#pragma unroll
      for (int c = 0; c < kPack; ++c) sum2[c] *= inverse;
      store_row<T, kPack>(static_cast<T*>(p.out) + at, d, p.dim, sum2);
      if (lane == 0) p.lse_out[head_index * tokens + own] = none ? -INFINITY : top + logf(total);
    } else if (kRole == MeshRole::kQuery) {
      store_row<T, kPack>(static_cast<T*>(p.dq) + at, d, p.dim, sum1);
    } else {
      store_row<T, kPack>(static_cast<T*>(p.dk) + at, d, p.dim, sum1);
      store_row<T, kPack>(static_cast<T*>(p.dv) + at, d, p.dim, sum2);
    }
    __syncwarp();
  }
}

template <int kDim>
constexpr int64_t strip_shared(int joints, int64_t tokens, bool backward) {
  return int64_t(sizeof(float)) * (backward ? 2 : 1) * joints * (kDim + 4 + tokens);
}

// scores[j, t] = strip[j] . rows[t] for all joints and tokens, one thread per token, eight joints at a time.
template <typename T, int kDim>
__device__ __forceinline__ void strip_scores(const float* strip, const HeadRows<T>& rows, int joints, int tokens, int dim,
                                             bool vec, float* scores) {
  for (int t = int(threadIdx.x); t < tokens; t += kMeshThreads) {
    const T* row = rows[t];
    for (int j0 = 0; j0 < joints; j0 += 8) {
      float acc[8] = {};
#pragma unroll 2
      for (int d = 0; d < kDim; d += 4) {
        float y[4];
        load_row<T, 4>(row, d, dim, vec, y);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const float4 x = *reinterpret_cast<const float4*>(strip + min(j0 + j, joints - 1) * (kDim + 4) + d);
          acc[j] = fmaf(x.x, y[0], fmaf(x.y, y[1], fmaf(x.z, y[2], fmaf(x.w, y[3], acc[j]))));
        }
      }
#pragma unroll
      for (int j = 0; j < 8; ++j)
        if (j0 + j < joints) scores[int64_t(j0 + j) * tokens + t] = acc[j];
    }
  }
}

// out[j] = sum_t weight[j, t] rows[t], a warp per four joints, lanes over the dimensions.
template <typename T, int kDim>
__device__ __forceinline__ void strip_sum(const float* weight, const HeadRows<T>& rows, int joints, int tokens, int dim,
                                          bool vec, T* out, int64_t out_stride) {
  constexpr int kPack = kDim >= 64 ? kDim / 32 : 1;
  const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32), d = lane * kPack;
  for (int j0 = warp * 4; j0 < joints; j0 += kMeshWarps * 4) {
    float acc[4][kPack] = {};
#pragma unroll 2
    for (int t = 0; t < tokens; ++t) {
      float y[kPack];
      load_row<T, kPack>(rows[t], d, dim, vec, y);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float a = weight[int64_t(min(j0 + j, joints - 1)) * tokens + t];
#pragma unroll
        for (int c = 0; c < kPack; ++c) acc[j][c] = fmaf(a, y[c], acc[j][c]);
      }
    }
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (j0 + j < joints) store_row<T, kPack>(out + (j0 + j) * out_stride, d, dim, acc[j]);
  }
}

// Four blocks per multiprocessor: 512 heads (batch 64) are 3.9 on each of 132, and with that allowance of registers no
// variant spills.
template <typename T, int kDim, MeshRole kRole>
__global__ void __launch_bounds__(kMeshThreads, 4) mesh_attention_strip_kernel(const MeshAttentionParams p, bool vec) {
  constexpr bool kBackward = kRole != MeshRole::kForward;
  TF_DYNAMIC_SHARED(float, shared);
  const int64_t head_index = int64_t(blockIdx.x), b = head_index / p.heads;
  const int h = int(head_index % p.heads), joints = p.joints, tokens = joints + p.vertices;
  const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32);
  const HeadRows<T> q = head_rows<T>(p.q, b, h), k = head_rows<T>(p.k, b, h), v = head_rows<T>(p.v, b, h);
  const HeadRows<T> g = kBackward ? head_rows<T>(p.grad, b, h) : q;
  const uint32_t key = p.dropout.seed ? uint32_t(uint64_t(*p.dropout.seed)) : 0u, group = uint32_t(head_index);
  float* own1 = shared;
  float* own2 = own1 + joints * (kDim + 4);  // backward; both before the scores, whose size is no multiple of 16 bytes
  float* w = kBackward ? own2 + joints * (kDim + 4) : own2;
  float* ds = w + int64_t(joints) * tokens;
  load_strip<T, kDim>(kRole == MeshRole::kKey ? k : q, joints, p.dim, vec, p.scale, own1);
  if (kBackward) load_strip<T, kDim>(kRole == MeshRole::kKey ? v : g, joints, p.dim, vec, 1.f, own2);
  __syncthreads();
  strip_scores<T, kDim>(own1, kRole == MeshRole::kKey ? q : k, joints, tokens, p.dim, vec, w);
  if (kBackward) strip_scores<T, kDim>(own2, kRole == MeshRole::kKey ? g : v, joints, tokens, p.dim, vec, ds);
  __syncthreads();
  for (int j = warp; j < joints; j += kMeshWarps) {
    float* row = w + int64_t(j) * tokens;
    if (!kBackward) {
      float top = -INFINITY, total = 0.f;
      for (int t = lane; t < tokens; t += 32) top = fmaxf(top, row[t]);
      top = warp_max(top);
      for (int t = lane; t < tokens; t += 32) {
        const float e = expf(row[t] - top);
        row[t] = e;
        total += e;
      }
      total = warp_sum(total);
      for (int t = lane; t < tokens; t += 32) {
        const float keep = p.dropout.seed ? dropout_factor(p.dropout, key, uint32_t(j * tokens + t), group) : 1.f;
        row[t] *= keep / total;
      }
      if (lane == 0) p.lse_out[head_index * tokens + j] = top + logf(total);
    } else {
      float* grad_row = ds + int64_t(j) * tokens;
      for (int t = lane; t < tokens; t += 32) {
        const int query = kRole == MeshRole::kKey ? t : j, with = kRole == MeshRole::kKey ? j : t;
        const float l = p.lse_in[head_index * tokens + query];
        const float keep = p.dropout.seed ? dropout_factor(p.dropout, key, uint32_t(query * tokens + with), group) : 1.f;
        const float weight = l > -INFINITY ? expf(row[t] - l) : 0.f;
        grad_row[t] = weight * (keep * grad_row[t] - p.delta[head_index * tokens + query]) * p.scale;
        row[t] = weight * keep;
      }
    }
  }
  __syncthreads();
  const int64_t at = (b * tokens * p.heads + h) * p.dim, stride = int64_t(p.heads) * p.dim;
  if (kRole == MeshRole::kForward) {
    strip_sum<T, kDim>(w, v, joints, tokens, p.dim, vec, static_cast<T*>(p.out) + at, stride);
  } else if (kRole == MeshRole::kQuery) {
    strip_sum<T, kDim>(ds, k, joints, tokens, p.dim, vec, static_cast<T*>(p.dq) + at, stride);
  } else {
    strip_sum<T, kDim>(ds, q, joints, tokens, p.dim, vec, static_cast<T*>(p.dk) + at, stride);
    strip_sum<T, kDim>(w, g, joints, tokens, p.dim, vec, static_cast<T*>(p.dv) + at, stride);
  }
}

}  // namespace
}  // namespace tore_fast::cuda
