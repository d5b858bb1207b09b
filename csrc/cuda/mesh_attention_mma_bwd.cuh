// Backward of mesh_attention_mma.cuh, by the same tiles: weights again from lse, their gradients, three products a tile.
//
// Two kernels. Query rows give dq: keys and values lie in shared memory. Key rows, over the transposed table, give dk and dv:
// queries and gradients lie there. One output at a time: a tile of key rows is two tasks, and dv needs no gradient of the
// weights, so that the registers hold what a task needs twice per multiprocessor.
#pragma once
#include "mesh_attention_mma.cuh"

namespace tore_fast::cuda {
namespace {

// The lane's two rows of a task and where the others of the pairs lie.
template <typename T, int kDim>
struct GradientRows {
  const T *rows1, *rows2;  // shared memory: what `own1` and `own2` are multiplied with
  uint32_t own1[kDim / 16][4], own2[kDim / 16][4];
  int row[2];
  const float *lse, *delta;  // of this head
  float row_lse[2], row_delta[2];  // where the rows are queries
  int tokens;
};

// 2 kSteps blocks of 8 columns -> out: the task's sums. Bit 4 n + e of `open` as in the table; column(n, e): a block's column.
template <typename T, int kDim, int kSteps, bool kKeys, bool kValues, typename Column>
__device__ __forceinline__ void add_gradients(const MeshAttentionParams& p, const GradientRows<T, kDim>& g, const int (&token)[kSteps],
                                              int steps, uint32_t open, int lane, Column column, float (&out)[kDim / 8][4]) {
  float s[2 * kSteps][4], dp[2 * kSteps][4];
  tile_scores<T, kDim, kSteps>(s, g.own1, g.rows1, token, steps, lane);
  if constexpr (!kValues) tile_scores<T, kDim, kSteps>(dp, g.own2, g.rows2, token, steps, lane);
#pragma unroll
  for (int n = 0; n < 2 * kSteps; ++n) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int other = column(n, c);
      const float other_lse = kKeys ? g.lse[other] * kLog2E : 0.f, other_delta = kKeys && !kValues ? g.delta[other] : 0.f;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int e = 2 * h + c;
        const bool used = open >> (4 * n + e) & 1;
        const float l = kKeys ? other_lse : g.row_lse[h], d = kKeys ? other_delta : g.row_delta[h];
        const float weight = used && l > -INFINITY ? exp2_fast(fmaf(s[n][e], p.scale * kLog2E, -l)) : 0.f;
        float keep = 1.f;
        if (p.dropout.seed && used) {
          const int query = kKeys ? other : g.row[h], with = kKeys ? g.row[h] : other;
          keep = dropout_factor(p.dropout, uint32_t(uint64_t(*p.dropout.seed)), uint32_t(query * g.tokens + with), blockIdx.x);
        }
        s[n][e] = kValues ? weight * keep : weight * (keep * dp[n][e] - d) * p.scale;
      }
    }
  }
  tile_sum<T, kDim, kSteps>(out, s, kValues ? g.rows2 : g.rows1, token, steps, lane);
}

// The task's own rows as left operands. Worked out from the parameters each time: kept, the addresses would take registers.
template <typename T, int kDim, bool kKeys, bool kValues>
__device__ __forceinline__ void own_rows(const MeshAttentionParams& p, GradientRows<T, kDim>& g, int lane) {
  const int64_t b = blockIdx.x / unsigned(p.heads);
  const int h = int(blockIdx.x % unsigned(p.heads));
  left_rows<T, kDim>(head_rows<T>(kKeys ? p.k : p.q, b, h), g.row, p.dim, lane, g.own1);
  if constexpr (!kValues) left_rows<T, kDim>(head_rows<T>(kKeys ? p.v : p.grad, b, h), g.row, p.dim, lane, g.own2);
  if constexpr (!kKeys) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      g.row_lse[i] = g.row[i] >= 0 ? g.lse[g.row[i]] * kLog2E : 0.f;
      g.row_delta[i] = g.row[i] >= 0 ? g.delta[g.row[i]] : 0.f;
    }
  }
}

// Row 0 of a head's gradients: dq, or dk and dv.
template <typename T, bool kKeys>
__device__ __forceinline__ T* gradient_rows(const MeshAttentionParams& p, uint32_t head_index, int tokens, bool values) {
  const int64_t b = head_index / unsigned(p.heads), h = head_index % unsigned(p.heads);
  T* all = static_cast<T*>(!kKeys ? p.dq : values ? p.dv : p.dk);
  return all + (b * tokens * p.heads + h) * p.dim;
}

// A task of a vertex tile: its gradient rows, stored.
template <typename T, int kDim, bool kKeys, bool kValues>
__device__ __forceinline__ void tile_gradient(const MeshAttentionParams& p, GradientRows<T, kDim>& g, const int32_t* table,
                                              int lane) {
#pragma unroll
  for (int h = 0; h < 2; ++h) g.row[h] = min(table[lane / 4 + 8 * h], g.tokens - 1);
  own_rows<T, kDim, kKeys, kValues>(p, g, lane);
  const uint32_t open = uint32_t(table[80 + lane]);
  const int steps = min(table[112] / 16, kTileMeshColumns / 16);
  float sum[kDim / 8][4] = {};
#pragma unroll 1
  for (int i = 0; i < steps; ++i) {  // 16 columns at a time, not unrolled: two operands and the sums of more would spill
    const int32_t* columns = table + 16 + 16 * i;
    const auto inside = [&](int column) { return min(max(column, 0), g.tokens - 1); };
    const int token[1] = {inside(columns[lane % 16])};
    columns += 2 * (lane % 4);
    add_gradients<T, kDim, 1, kKeys, kValues>(
        p, g, token, 1, open >> (8 * i), lane, [&](int n, int c) { return inside(columns[8 * n + c]); }, sum);
  }
  const float one[2] = {1.f, 1.f};
  T* to = gradient_rows<T, kKeys>(p, blockIdx.x, g.tokens, kValues);
  store_tile<T, kDim>(to, int64_t(p.heads) * p.dim, g.row, p.dim, lane, sum, one);
}

// A task of the joint rows from `first` on and a part of the columns: its sums.
template <typename T, int kDim, bool kKeys, bool kValues>
__device__ __forceinline__ void joint_gradient(const MeshAttentionParams& p, GradientRows<T, kDim>& g, int first, int part,
                                               int parts, int lane, float (&sum)[kDim / 8][4]) {
  const int low = first + lane / 4;
  g.row[0] = low < p.joints ? low : -1, g.row[1] = low + 8 < p.joints ? low + 8 : -1;
  own_rows<T, kDim, kKeys, kValues>(p, g, lane);
  const int all_steps = (g.tokens + 15) / 16, end = (part + 1) * all_steps / parts;
#pragma unroll 1
  for (int step = part * all_steps / parts; step < end; ++step) {
    const int token[1] = {min(16 * step + lane % 16, g.tokens - 1)}, base = 16 * step + 2 * (lane % 4);
    uint32_t open = 0;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) open |= uint32_t(base + 8 * n + e % 2 < g.tokens && g.row[e / 2] >= 0) << (4 * n + e);
    }
    add_gradients<T, kDim, 1, kKeys, kValues>(
        p, g, token, 1, open, lane, [&](int n, int c) { return min(base + 8 * n + c, g.tokens - 1); }, sum);
  }
}

template <typename T, int kDim, bool kKeys>
__global__ void __launch_bounds__(kTileMeshThreads, 2) mesh_attention_mma_bwd_kernel(const MeshAttentionParams p) {
  TF_DYNAMIC_SHARED(uint16_t, memory);
  constexpr int kOutputs = kKeys ? 2 : 1;
  const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32);
  const int64_t head_index = int64_t(blockIdx.x), b = head_index / p.heads;
  const int h = int(head_index % p.heads), tokens = p.joints + p.vertices, dim = p.dim;
  T* rows1 = reinterpret_cast<T*>(memory);
  T* rows2 = rows1 + tokens * kDim;
  GradientRows<T, kDim> g;
  g.rows1 = rows1, g.rows2 = rows2;
  g.lse = p.lse_in + head_index * tokens, g.delta = p.delta + head_index * tokens;
  g.tokens = tokens;
  stage_rows<T, kDim>(head_rows<T>(kKeys ? p.q : p.k, b, h), tokens, dim, rows1);
  stage_rows<T, kDim>(head_rows<T>(kKeys ? p.grad : p.v, b, h), tokens, dim, rows2);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();

  const int32_t* tiles = kKeys ? p.t_tiles : p.tiles;
  const int tasks = (kKeys ? p.num_t_tiles : p.num_tiles) * kOutputs;
  for (int task = warp; task < tasks; task += kTileMeshWarps) {
    const int32_t* table = tiles + int64_t(task / kOutputs) * kTileMeshWidth;
    if (kKeys && task % 2)
      tile_gradient<T, kDim, kKeys, true>(p, g, table, lane);
    else
      tile_gradient<T, kDim, kKeys, false>(p, g, table, lane);
  }

  const JointParts joint = joint_parts(p.joints, tasks, kOutputs);
  const int unit = kTileMeshWarps - 1 - warp;
  float sum[kDim / 8][4] = {};
  if (unit < joint.units()) {
    const int group = unit / joint.parts, first = group / kOutputs * kTileMeshRows, part = unit % joint.parts;
    if (kKeys && group % 2)
      joint_gradient<T, kDim, kKeys, true>(p, g, first, part, joint.parts, lane, sum);
    else
      joint_gradient<T, kDim, kKeys, false>(p, g, first, part, joint.parts, lane, sum);
  }
  __syncthreads();  // the staged rows are done with
  float* parts = reinterpret_cast<float*>(memory);
  if (unit < joint.units()) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float* to = parts + (unit * kTileMeshRows + lane / 4 + 8 * e) * kDim + 2 * (lane % 4);
#pragma unroll
      for (int d = 0; d < kDim / 8; ++d) *reinterpret_cast<float2*>(to + 8 * d) = make_float2(sum[d][2 * e], sum[d][2 * e + 1]);
    }
  }
  __syncthreads();
  for (int u = int(threadIdx.x); u < kOutputs * p.joints * kDim; u += kTileMeshThreads) {
    const int output = u / (p.joints * kDim), j = u / kDim % p.joints, d = u % kDim;
    const int first = (j / kTileMeshRows * kOutputs + output) * joint.parts * kTileMeshRows + j % kTileMeshRows;
    float value = 0.f;
    for (int i = 0; i < joint.parts; ++i) value += parts[(first + i * kTileMeshRows) * kDim + d];
    if (d < dim) gradient_rows<T, kKeys>(p, blockIdx.x, tokens, output)[int64_t(j) * p.heads * dim + d] = from_float<T>(value);
  }
}

}  // namespace
}  // namespace tore_fast::cuda
