// mesh_attention of 16-bit tokens on the matrix units. A block owns one head: all its keys and values lie in shared memory.
//
// Vertex rows: a warp takes a tile of up to 16 rows that see the same 64 columns or fewer (joints and the union of their
// neighbours; the table of ops/_mesh_tiles.py). Scores by mma.m16n8k16, whose operand rows ldmatrix gathers by the columns'
// addresses; closed pairs by the table's mask words; the softmax in registers, a row belongs to the four lanes of a quad; its
// weights, rounded to 16 bit, are the operand of the second product.
// Joint rows see every token: the warps share the columns, each with its own running maximum, and put their parts together.
//
// Rows in shared memory have no padding (two blocks fit a multiprocessor); the 16-byte chunks of a row are swapped by an
// exclusive or instead, so that rows which differ modulo 8 lie in different banks.
#pragma once
#include "mesh_attention.cuh"
#include "ptx.cuh"

namespace tore_fast::cuda {
namespace {

constexpr int kTileMeshThreads = 256, kTileMeshWarps = kTileMeshThreads / 32;
constexpr int kTileMeshRows = 16, kTileMeshColumns = 64, kTileMeshWidth = 128;  // ROWS, COLUMNS, WIDTH of _mesh_tiles.py
constexpr int kJointSteps = 2;  // steps of 16 columns that the joint rows take at a time: more would spill
constexpr float kLog2E = 1.4426950408889634f;

// 2^v, two units in the last place; numbers below the normal range become 0.
__device__ __forceinline__ float exp2_fast(float v) {
#ifdef TORE_FAST_EMULATED
  return exp2f(v);
#else
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
#endif
}

template <typename T>
__device__ __forceinline__ uint32_t pack2(float a, float b);
template <>
__device__ __forceinline__ uint32_t pack2<__half>(float a, float b) {
  const __half2 v = __floats2half2_rn(a, b);
  return *reinterpret_cast<const uint32_t*>(&v);
}
template <>
__device__ __forceinline__ uint32_t pack2<__nv_bfloat16>(float a, float b) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
  return *reinterpret_cast<const uint32_t*>(&v);
}

// Of two lanes that differ in `step`, the lower one gives its b for the upper one's a.
__device__ __forceinline__ void swap_words(uint32_t& a, uint32_t& b, int lane, int step) {
  const bool upper = lane & step;
  const uint32_t got = __shfl_xor_sync(kMeshAll, upper ? a : b, step);
  a = upper ? got : a;
  b = upper ? b : got;
}

// Words of a row in a quad: lane t holds words 4 t .. of its own 16-byte chunk in memory order <-> word t of every chunk, the
// order of mma's fragments. Its own inverse. Rows of 16 numbers have two chunks: a lane holds half of one.
template <int kDim>
__device__ __forceinline__ void turn(uint32_t (&w)[kDim / 8], int lane) {
  if constexpr (kDim == 16) {
    swap_words(w[0], w[1], lane, 1);
  } else {
#pragma unroll
    for (int i = 0; i < kDim / 8; i += 4) {
      swap_words(w[i], w[i + 1], lane, 1);
      swap_words(w[i + 2], w[i + 3], lane, 1);
      swap_words(w[i], w[i + 2], lane, 2);
      swap_words(w[i + 1], w[i + 3], lane, 2);
    }
  }
}

// The lane's words of a row in memory order; zeros for no row (token < 0) and beyond dim.
template <typename T, int kDim>
__device__ __forceinline__ void load_words(const HeadRows<T>& rows, int token, int dim, int lane, uint32_t (&w)[kDim / 8]) {
  const int t = lane % 4;
#pragma unroll
  for (int i = 0; i < kDim / 8; ++i) w[i] = 0;
  if (token < 0) return;
  const T* row = rows[token];
  if constexpr (kDim == 16) {
    if (t % 2 * 8 < dim) {
      const uint2 v = *reinterpret_cast<const uint2*>(row + t % 2 * 8 + t / 2 * 4);
      w[0] = v.x, w[1] = v.y;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kDim / 32; ++i) {
      if (32 * i + 8 * t < dim) {
        const uint4 v = *reinterpret_cast<const uint4*>(row + 32 * i + 8 * t);
        w[4 * i] = v.x, w[4 * i + 1] = v.y, w[4 * i + 2] = v.z, w[4 * i + 3] = v.w;
      }
    }
  }
}

template <typename T, int kDim>
__device__ __forceinline__ void store_words(T* row, int dim, int lane, const uint32_t (&w)[kDim / 8]) {
  const int t = lane % 4;
  if constexpr (kDim == 16) {
    if (t % 2 * 8 < dim) *reinterpret_cast<uint2*>(row + t % 2 * 8 + t / 2 * 4) = make_uint2(w[0], w[1]);
  } else {
#pragma unroll
    for (int i = 0; i < kDim / 32; ++i) {
      if (32 * i + 8 * t < dim)
        *reinterpret_cast<uint4*>(row + 32 * i + 8 * t) = make_uint4(w[4 * i], w[4 * i + 1], w[4 * i + 2], w[4 * i + 3]);
    }
  }
}

// Rows `token` of a tile (the lane's two) as fragments of the left operand, 16 numbers of the row each.
template <typename T, int kDim>
__device__ __forceinline__ void left_rows(const HeadRows<T>& rows, const int (&token)[2], int dim, int lane,
                                          uint32_t (&a)[kDim / 16][4]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    uint32_t w[kDim / 8];
    load_words<T, kDim>(rows, token[h], dim, lane, w);
    turn<kDim>(w, lane);
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) a[k][h] = w[2 * k], a[k][h + 2] = w[2 * k + 1];
  }
}

// Where chunk `chunk` of row `token` lies.
template <typename T, int kDim>
__device__ __forceinline__ const T* chunk_at(const T* rows, int token, int chunk) {
  constexpr int kChunks = kDim / 8;
  return rows + token * kDim + (chunk ^ (token / (8 / kChunks) % kChunks)) * 8;
}

template <typename T, int kDim>
__device__ __forceinline__ void stage_rows(const HeadRows<T>& rows, int tokens, int dim, T* to) {
  constexpr int kChunks = kDim / 8;
  for (int u = int(threadIdx.x); u < tokens * kChunks; u += kTileMeshThreads) {
    const int token = u / kChunks, chunk = u % kChunks;
    const bool inside = 8 * chunk < dim;
    cp_async<16>(const_cast<T*>(chunk_at<T, kDim>(to, token, chunk)), rows[token] + (inside ? 8 * chunk : 0), inside ? 16 : 0);
  }
}

// s[16, 16 kSteps] = a . rows^T; token[i]: row lane % 16 of step i of 16 columns. Steps from `steps` on stay 0.
template <typename T, int kDim, int kSteps>
__device__ __forceinline__ void tile_scores(float (&s)[2 * kSteps][4], const uint32_t (&a)[kDim / 16][4], const T* rows,
                                            const int (&token)[kSteps], int steps, int lane) {
  constexpr bool kBf16 = std::is_same_v<T, __nv_bfloat16>;
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
#pragma unroll
    for (int e = 0; e < 4; ++e) s[2 * i][e] = s[2 * i + 1][e] = 0.f;
    if (i < steps) {
#pragma unroll
      for (int k = 0; k < kDim / 16; ++k) {
        uint32_t b[4];  // columns 0-7 k, 8-15 k, 0-7 k+8, 8-15 k+8
        ldmatrix_x4(b, chunk_at<T, kDim>(rows, token[i], 2 * k + lane / 16));
        mma_16816<kBf16>(s[2 * i], a[k], b[0], b[2]);
        mma_16816<kBf16>(s[2 * i + 1], a[k], b[1], b[3]);
      }
    }
  }
}

// out[16, kDim] += w[16, 16 kSteps] rows
template <typename T, int kDim, int kSteps>
__device__ __forceinline__ void tile_sum(float (&out)[kDim / 8][4], const float (&w)[2 * kSteps][4], const T* rows,
                                         const int (&token)[kSteps], int steps, int lane) {
  constexpr bool kBf16 = std::is_same_v<T, __nv_bfloat16>;
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    if (i < steps) {
      uint32_t a[4] = {pack2<T>(w[2 * i][0], w[2 * i][1]), pack2<T>(w[2 * i][2], w[2 * i][3]),
                             pack2<T>(w[2 * i + 1][0], w[2 * i + 1][1]), pack2<T>(w[2 * i + 1][2], w[2 * i + 1][3])};
#pragma unroll
      for (int d = 0; d < kDim / 16; ++d) {
        uint32_t b[4];  // columns 0-7 d, 8-15 d, 0-7 d+8, 8-15 d+8
        ldmatrix_x4_trans(b, chunk_at<T, kDim>(rows, token[i], 2 * d + lane / 16));
        mma_16816<kBf16>(out[2 * d], a, b[0], b[1]);
        mma_16816<kBf16>(out[2 * d + 1], a, b[2], b[3]);
      }
    }
  }
}

__device__ __forceinline__ float quad_max(float v) {
  v = fmaxf(v, __shfl_xor_sync(kMeshAll, v, 1));
  return fmaxf(v, __shfl_xor_sync(kMeshAll, v, 2));
}
__device__ __forceinline__ float quad_sum(float v) {
  v += __shfl_xor_sync(kMeshAll, v, 1);
  return v + __shfl_xor_sync(kMeshAll, v, 2);
}

// The lane's two rows times `factor` to `out`, a [token, head, dim] tensor of this head.
template <typename T, int kDim>
__device__ __forceinline__ void store_tile(T* out, int64_t stride, const int (&token)[2], int dim, int lane,
                                           const float (&v)[kDim / 8][4], const float (&factor)[2]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    uint32_t w[kDim / 8];
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) w[n] = pack2<T>(v[n][2 * h] * factor[h], v[n][2 * h + 1] * factor[h]);
    turn<kDim>(w, lane);
    if (token[h] >= 0) store_words<T, kDim>(out + token[h] * stride, dim, lane, w);
  }
}

// How the joint rows are shared out: `parts` column ranges for each tile of 16 rows and output, one warp for each.
struct JointParts {
  int groups, parts;
  __host__ __device__ int units() const { return groups * parts; }
};
// The warps without a vertex tile in the last round, if they are enough.
__host__ __device__ inline JointParts joint_parts(int joints, int vertex_tasks, int outputs = 1) {
  const int groups = (joints + kTileMeshRows - 1) / kTileMeshRows * outputs, idle = kTileMeshWarps - vertex_tasks % kTileMeshWarps;
  return {groups, groups ? (2 * idle >= kTileMeshWarps && idle >= groups ? idle : kTileMeshWarps) / groups : 0};
}
inline bool whole_packs(const HeadTensor& t) {
  return reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && t.batch % 8 == 0 && t.head % 8 == 0 && t.token % 8 == 0;
}
// Dynamic shared memory: two rows per token; over them, when they are done with, the parts of the joint rows.
constexpr int64_t tile_mesh_shared(int dim, int64_t tokens, int units) {
  const int64_t rows = tokens * dim * 4, parts = int64_t(units) * kTileMeshRows * (dim + 2) * 4;
  return rows > parts ? rows : parts;
}

// What a lane knows of its vertex tile.
struct VertexTile {
  int row[2];     // -1: none
  int column[4];  // row lane % 16 of each step of 16 columns
  int steps;
  uint32_t open;
};

__device__ __forceinline__ VertexTile vertex_tile(const int32_t* tiles, int tile, int tokens, int lane) {
  const int32_t* at = tiles + int64_t(tile) * kTileMeshWidth;
  VertexTile t;
#pragma unroll
  for (int h = 0; h < 2; ++h) t.row[h] = min(at[lane / 4 + 8 * h], tokens - 1);
#pragma unroll
  for (int i = 0; i < 4; ++i) t.column[i] = min(max(at[16 + 16 * i + lane % 16], 0), tokens - 1);
  t.open = uint32_t(at[80 + lane]);
  t.steps = at[112] / 16;
  return t;
}

template <typename T, int kDim>
__global__ void __launch_bounds__(kTileMeshThreads, 2) mesh_attention_mma_kernel(const MeshAttentionParams p) {
  TF_DYNAMIC_SHARED(uint16_t, memory);
  const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32);
  const int64_t head_index = int64_t(blockIdx.x), b = head_index / p.heads;
  const int h = int(head_index % p.heads), tokens = p.joints + p.vertices, dim = p.dim;
  T *keys = reinterpret_cast<T*>(memory), *values = keys + tokens * kDim;
  const HeadRows<T> q = head_rows<T>(p.q, b, h);
  T* out = static_cast<T*>(p.out) + (b * tokens * p.heads + h) * dim;
  float* lse = p.lse_out + head_index * tokens;
  const int64_t stride = int64_t(p.heads) * dim;
  const uint32_t key = p.dropout.seed ? uint32_t(uint64_t(*p.dropout.seed)) : 0u, group = uint32_t(head_index);
  const float scale = p.scale * kLog2E;
  stage_rows<T, kDim>(head_rows<T>(p.k, b, h), tokens, dim, keys);
  stage_rows<T, kDim>(head_rows<T>(p.v, b, h), tokens, dim, values);
  cp_async_commit();

  VertexTile t;
  uint32_t a[kDim / 16][4];
  if (warp < p.num_tiles) {  // on its way together with the keys
    t = vertex_tile(p.tiles, warp, tokens, lane);
    left_rows<T, kDim>(q, t.row, dim, lane, a);
  }
  cp_async_wait<0>();
  __syncthreads();
  for (int tile = warp; tile < p.num_tiles;) {
    float s[8][4];
    tile_scores<T, kDim, 4>(s, a, keys, t.column, t.steps, lane);
    float top[2] = {-INFINITY, -INFINITY}, total[2] = {};
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        s[n][e] = t.open >> (4 * n + e) & 1 ? s[n][e] * scale : -INFINITY;
        top[e / 2] = fmaxf(top[e / 2], s[n][e]);
      }
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) top[e] = quad_max(top[e]);
    const float shift[2] = {top[0] > -INFINITY ? top[0] : 0.f, top[1] > -INFINITY ? top[1] : 0.f};
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        s[n][e] = exp2_fast(s[n][e] - shift[e / 2]);
        total[e / 2] += s[n][e];
      }
    }
    float factor[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      total[e] = quad_sum(total[e]);
      factor[e] = total[e] > 0.f ? 1.f / total[e] : total[e];  // 0: a row without keys; otherwise not a number
      if (t.row[e] >= 0 && lane % 4 == 0)
        lse[t.row[e]] = total[e] == 0.f ? -INFINITY : (top[e] + log2f(total[e])) * (1.f / kLog2E);
    }
    if (p.dropout.seed) {
      const int32_t* column = p.tiles + int64_t(tile) * kTileMeshWidth + 16 + 2 * (lane % 4);
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (t.open >> (4 * n + e) & 1)
            s[n][e] *= dropout_factor(p.dropout, key, uint32_t(t.row[e / 2] * tokens + column[8 * n + e % 2]), group);
        }
      }
    }
    float sum[kDim / 8][4] = {};
    tile_sum<T, kDim, 4>(sum, s, values, t.column, t.steps, lane);
    store_tile<T, kDim>(out, stride, t.row, dim, lane, sum, factor);
    tile += kTileMeshWarps;
    if (tile < p.num_tiles) {
      t = vertex_tile(p.tiles, tile, tokens, lane);
      left_rows<T, kDim>(q, t.row, dim, lane, a);
    }
  }

  const JointParts joint = joint_parts(p.joints, p.num_tiles);
  const int unit = kTileMeshWarps - 1 - warp;  // the last warps have the fewest vertex tiles
  float top[2] = {-INFINITY, -INFINITY}, total[2] = {}, sum[kDim / 8][4] = {};
  if (unit < joint.units()) {
    const int first = unit / joint.parts * kTileMeshRows + lane / 4, part = unit % joint.parts;
    const int row[2] = {first < p.joints ? first : -1, first + 8 < p.joints ? first + 8 : -1};
    left_rows<T, kDim>(q, row, dim, lane, a);
    const int all_steps = (tokens + 15) / 16, end = (part + 1) * all_steps / joint.parts;
    for (int step = part * all_steps / joint.parts; step < end; step += kJointSteps) {
      int column[kJointSteps];
#pragma unroll
      for (int i = 0; i < kJointSteps; ++i) column[i] = min(16 * (step + i) + lane % 16, tokens - 1);
      const int steps = min(kJointSteps, end - step);
      float s[2 * kJointSteps][4];
      tile_scores<T, kDim, kJointSteps>(s, a, keys, column, steps, lane);
      float new_top[2] = {top[0], top[1]};
#pragma unroll
      for (int n = 0; n < 2 * kJointSteps; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const bool open = n < 2 * steps && 16 * step + 8 * n + 2 * (lane % 4) + e % 2 < tokens;
          s[n][e] = open ? s[n][e] * scale : -INFINITY;
          new_top[e / 2] = fmaxf(new_top[e / 2], s[n][e]);
        }
      }
      float shift[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        new_top[e] = quad_max(new_top[e]);
        shift[e] = new_top[e] > -INFINITY ? new_top[e] : 0.f;
        const float less = exp2_fast(top[e] - shift[e]);
        top[e] = new_top[e];
        total[e] *= less;
#pragma unroll
        for (int d = 0; d < kDim / 8; ++d) sum[d][2 * e] *= less, sum[d][2 * e + 1] *= less;
      }
#pragma unroll
      for (int n = 0; n < 2 * kJointSteps; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          s[n][e] = exp2_fast(s[n][e] - shift[e / 2]);
          total[e / 2] += s[n][e];
          const int c = 16 * step + 8 * n + 2 * (lane % 4) + e % 2;
          if (p.dropout.seed && row[e / 2] >= 0 && c < tokens)
            s[n][e] *= dropout_factor(p.dropout, key, uint32_t(row[e / 2] * tokens + c), group);
        }
      }
      tile_sum<T, kDim, kJointSteps>(sum, s, values, column, steps, lane);
    }
  }
  __syncthreads();  // keys and values are done with
  float *parts = reinterpret_cast<float*>(memory), *tops = parts + joint.units() * kTileMeshRows * kDim;
  float* totals = tops + joint.units() * kTileMeshRows;
  if (unit < joint.units()) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int at = unit * kTileMeshRows + lane / 4 + 8 * e;
#pragma unroll
      for (int d = 0; d < kDim / 8; ++d)
        *reinterpret_cast<float2*>(parts + at * kDim + 8 * d + 2 * (lane % 4)) = make_float2(sum[d][2 * e], sum[d][2 * e + 1]);
      total[e] = quad_sum(total[e]);
      if (lane % 4 == 0) tops[at] = top[e], totals[at] = total[e];
    }
  }
  __syncthreads();
  for (int u = int(threadIdx.x); u < p.joints * kDim; u += kTileMeshThreads) {
    const int j = u / kDim, d = u % kDim, at = j / kTileMeshRows * joint.parts * kTileMeshRows + j % kTileMeshRows;
    float most = -INFINITY, all = 0.f, value = 0.f;
    for (int i = 0; i < joint.parts; ++i) most = fmaxf(most, tops[at + i * kTileMeshRows]);
    for (int i = 0; i < joint.parts; ++i) {
      const int from = at + i * kTileMeshRows;
      const float weight = exp2_fast(tops[from] - (most > -INFINITY ? most : 0.f));
      all = fmaf(weight, totals[from], all);
      value = fmaf(weight, parts[from * kDim + d], value);
    }
    if (d < dim) out[j * stride + d] = from_float<T>(value / all);
    if (d == 0) lse[j] = (most + log2f(all)) * (1.f / kLog2E);
  }
}

}  // namespace
}  // namespace tore_fast::cuda
