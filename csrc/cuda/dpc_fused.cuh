// dpc_knn_cluster of few tokens in one launch, one block per image: distances, density, delta, ranks, nearest
// centre, and (dpc_knn_cluster_merge) the merged tokens with the token dictionary's bookkeeping.
//
// x is read once (up to 180 tokens; twice up to 256), 32 channels at a time (the next chunk is fetched into
// registers while the current one is used). The distances are accumulated in 4 x 4 register tiles over the
// lower triangle and end up packed in shared memory: d(i, j <= i) at i (i + 1) / 2 + j, i.e. 4.9 KB for 49
// tokens, 118.6 KB for 243. Reading a row through its transposed part (stride growing by one) meets at most
// two lanes per bank.
//
// The merge reads the tokens of each cluster once more. An image's x is then in L1 or L2: 49 x 512 float32 are
// 100 KB, two blocks leave about 200 KB of a multiprocessor's 256 KB to L1. Keeping x in shared memory instead
// was counted and rejected: the channel-major layout that the distances want costs 4 bank conflicts per read
// (3136 cycles per such image, against 1568 at 64 bytes a cycle from L2), and 131 KB would halve the blocks per
// multiprocessor.
#pragma once
#include "cluster_merge.h"
#include "dpc_select.cuh"

namespace tore_fast::cuda {
namespace {

// Up to 96 tokens one 4 x 4 tile per thread covers all pairs; 384 threads of at most 85 registers let two
// blocks share a multiprocessor. Beyond: two tiles per thread and round, one block of 512.
constexpr int kSmallTokens = 96, kSmallThreads = 384;
constexpr int kFusedTokens = 256, kFusedThreads = 512;

struct FusedPlan {
  int width;    // tokens rounded up to 32: row length of the staged chunk
  int tiles;    // 4 x 4 tiles of the lower triangle
  int group;    // threads that cover all tiles (a multiple of 32)
  int splits;   // groups that share the channels (1 unless one tile per thread covers all)
  int passes;   // tiles per thread and round: 1 or 2, what the registers hold
  int rounds;   // x is read once per round
  int threads;  // group * splits
  int lanes;    // lanes per token in the later steps
};

__host__ __device__ inline FusedPlan fused_plan(int tokens) {
  FusedPlan f;
  const int blocks = (tokens + 3) / 4;
  f.width = (tokens + 31) / 32 * 32;
  f.tiles = blocks * (blocks + 1) / 2;
  const int most = tokens <= kSmallTokens ? kSmallThreads : kFusedThreads;
  f.passes = tokens <= kSmallTokens ? 1 : 2;
  f.group = f.tiles < most ? (f.tiles + 31) / 32 * 32 : most;
  f.rounds = (f.tiles + f.group * f.passes - 1) / (f.group * f.passes);
  f.splits = 1;
  while (f.passes == 1 && f.splits < 8 && f.splits * 2 * f.group <= most) f.splits *= 2;
  f.threads = f.group * f.splits;
  // the fetch registers must cover width * 8 float4 of a chunk, the later steps need a thread per token
  while (f.threads * 2 * f.passes < f.width * (kChunk / 4) || f.threads < tokens) f.threads += 32;
  f.lanes = 1;
  while (f.lanes < 32 && f.lanes * 2 * tokens <= f.threads) f.lanes *= 2;
  return f;
}

// Floats of dynamic shared memory: staged chunk | packed distances | rho, score | ranked, place, rank (as
// int).
__host__ __device__ inline int64_t fused_floats(int tokens, int clusters) {
  return int64_t(fused_plan(tokens).width) * kChunk + int64_t(tokens) * (tokens + 1) / 2 + 3 * tokens +
         2 * clusters + kFusedThreads / 32;
}

__device__ __forceinline__ float& packed(float* d, int i, int j) {
  return i >= j ? d[i * (i + 1) / 2 + j] : d[j * (j + 1) / 2 + i];
}

template <int kPasses>
__device__ __forceinline__ void fused_distances(const TokenRows& x, const FusedPlan& f, int round,
                                                float* chunk, float* d) {
  constexpr int kFetch = 2 * kPasses;  // float4 a thread fetches ahead
  const int tokens = x.count, split = int(threadIdx.x) / f.group, in_group = int(threadIdx.x) % f.group;
  const bool computing = split < f.splits;  // threads beyond only help loading
  int row[kPasses], column[kPasses];        // first token of the tile; row < 0: no tile
#pragma unroll
  for (int i = 0; i < kPasses; ++i) {
    const int tile = in_group + (round * kPasses + i) * f.group;
    int p = int((sqrtf(8.f * float(tile) + 1.f) - 1.f) * 0.5f);
    while (p * (p + 1) / 2 > tile) --p;
    while ((p + 1) * (p + 2) / 2 <= tile) ++p;
    row[i] = computing && tile < f.tiles ? 4 * p : -1;
    column[i] = 4 * (tile - p * (p + 1) / 2);
  }
  float sum[kPasses][4][4] = {};
  const auto flush = [&](bool first, float scale) {  // sums into d: the tiles of a group are disjoint
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      if (row[i] < 0) continue;
#pragma unroll
      for (int r = 0; r < 4; ++r) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const int a = row[i] + r, b = column[i] + c;
          if (a < tokens && b <= a) {
            float& at = d[a * (a + 1) / 2 + b];
            at = ((first ? 0.f : at) + sum[i][r][c]) * scale;
          }
          sum[i][r][c] = 0.f;
        }
      }
    }
  };
  float4 fetched[kFetch];
  const auto fetch = [&](int k0) {
#pragma unroll
    for (int i = 0; i < kFetch; ++i) {
      const int u = int(threadIdx.x) + i * f.threads, c = (u & 7) * 4, r = u >> 3;
      fetched[i] = r < tokens ? load4(x.x, x.dtype, x.vectorised, int64_t(r) * x.channels + k0 + c,
                                      x.channels - k0 - c)
                              : make_float4(0.f, 0.f, 0.f, 0.f);
    }
  };
  fetch(0);
  const int share = kChunk / f.splits, from = split * share;  // channels of the chunk this thread sums up
  bool stored = false;
  for (int k0 = 0; k0 < x.channels; k0 += kChunk) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kFetch; ++i) {
      const int u = int(threadIdx.x) + i * f.threads, c = (u & 7) * 4, r = u >> 3;
      if (r < f.width) {
        chunk[staged(c, r, f.width)] = fetched[i].x;
        chunk[staged(c + 1, r, f.width)] = fetched[i].y;
        chunk[staged(c + 2, r, f.width)] = fetched[i].z;
        chunk[staged(c + 3, r, f.width)] = fetched[i].w;
      }
    }
    __syncthreads();
    if (k0 + kChunk < x.channels) fetch(k0 + kChunk);
    if (computing) {
      for (int c = from; c < from + share; ++c) {
#pragma unroll
        for (int i = 0; i < kPasses; ++i) {
          if (row[i] < 0) continue;
          const float4 av = *reinterpret_cast<const float4*>(chunk + staged(c, row[i], f.width));
          const float4 bv = *reinterpret_cast<const float4*>(chunk + staged(c, column[i], f.width));
          const float ar[4] = {av.x, av.y, av.z, av.w}, br[4] = {bv.x, bv.y, bv.z, bv.w};
#pragma unroll
          for (int r = 0; r < 4; ++r) {
#pragma unroll
            for (int cc = 0; cc < 4; ++cc) {
              const float diff = ar[r] - br[cc];
              sum[i][r][cc] = fmaf(diff, diff, sum[i][r][cc]);
            }
          }
        }
      }
    }
    // one split owns its sums alone: store them every 128 channels, which keeps the rounding of long sums
    // down
    if (f.splits == 1 && (k0 / kChunk) % 4 == 3) {
      flush(!stored, 1.f);
      stored = true;
    }
  }
  const float scale = 1.f / float(x.channels);
  for (int turn = 0; turn < f.splits; ++turn) {  // in fixed order
    if (split == turn) flush(turn == 0 && !stored, turn == f.splits - 1 ? scale : 1.f);
    __syncthreads();
  }
}

// Writes v[0..3] to y[i..], as many as `left`.
__device__ __forceinline__ void store4(void* y, DType dtype, int64_t i, int left, const float (&v)[4]) {
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    if (q >= left) return;
    if (dtype == DType::kFloat32) static_cast<float*>(y)[i + q] = v[q];
    if (dtype == DType::kFloat16) static_cast<__half*>(y)[i + q] = from_float<__half>(v[q]);
    if (dtype == DType::kBFloat16) static_cast<__nv_bfloat16*>(y)[i + q] = from_float<__nv_bfloat16>(v[q]);
  }
}

// Merges the tokens of image b by their clusters, which the block has just written to `id` (shared memory).
// `work`: 2 tokens + 2 clusters + 1 more words. Sums run over ascending tokens, as in cluster_merge.cuh.
__device__ __forceinline__ void fused_merge(const TokenRows& x, const ClusterMergeParams& m, int64_t b,
                                            const int* id, int* work) {
  const int tokens = x.count, clusters = int(m.clusters), thread = int(threadIdx.x);
  int* items = work;           // [tokens] sorted by (cluster, token)
  int* first = items + tokens; // [clusters + 1] where a cluster's items begin
  float* total = reinterpret_cast<float*>(first + clusters + 1);  // [clusters]
  float* share = total + clusters;                                // [tokens]
  const float* weight = m.weight ? m.weight + b * tokens : nullptr;
  for (int i = thread; i < tokens; i += blockDim.x) {
    int before = 0;
    for (int j = 0; j < tokens; ++j) before += id[j] < id[i] || (id[j] == id[i] && j < i);
    items[before] = i;
    share[i] = weight ? weight[i] : 1.f;
  }
  for (int c = thread; c <= clusters; c += blockDim.x) {
    int before = 0;
    for (int j = 0; j < tokens; ++j) before += id[j] < c;
    first[c] = before;
  }
  __syncthreads();
  for (int c = thread; c < clusters; c += blockDim.x) {
    float sum = 0.f;
    for (int e = first[c]; e < first[c + 1]; ++e) sum += share[items[e]];
    total[c] = sum + kMergeEps;
    m.total[b * clusters + c] = total[c];
  }
  __syncthreads();
  for (int i = thread; i < tokens; i += blockDim.x) {
    share[i] /= total[id[i]];
    m.norm_weight[b * tokens + i] = share[i];
  }
  __syncthreads();

  const int quads = (x.channels + 3) / 4;  // a thread sums four channels of one cluster
  for (int unit = thread; unit < clusters * quads; unit += blockDim.x) {
    const int c = unit / quads, f = 4 * (unit % quads), left = x.channels - f;
    float sum[4] = {};
#pragma unroll 4
    for (int e = first[c]; e < first[c + 1]; ++e) {
      const int j = items[e];
      const float4 v = load4(x.x, x.dtype, x.vectorised, int64_t(j) * x.channels + f, left);
      const float part[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int q = 0; q < 4; ++q) sum[q] = fmaf(share[j], part[q], sum[q]);
    }
    store4(m.merged, x.dtype, (b * clusters + c) * x.channels + f, left, sum);
  }
  for (int64_t cell = thread; cell < m.cells; cell += blockDim.x) {
    const int64_t at = b * m.cells + cell, token = m.idx_token[at];
    const bool valid = token >= 0 && token < tokens;
    m.new_idx_token[at] = valid ? id[token] : -1;
    m.new_agg_weight[at] = valid ? m.agg_weight[at] * share[token] : 0.f;
  }
}

// m.merged == nullptr: no merge.
template <int kPasses>
__global__ void __launch_bounds__(kPasses == 1 ? kSmallThreads : kFusedThreads, kPasses == 1 ? 2 : 1)
    dpc_fused_kernel(const DpcParams p, const ClusterMergeParams m) {
  TF_DYNAMIC_SHARED(float, shared);
  const int tokens = int(p.t.tokens), clusters = p.clusters;
  const FusedPlan f = fused_plan(tokens);
  float* chunk = shared;
  float* d = chunk + f.width * kChunk;
  float* rho = d + tokens * (tokens + 1) / 2;
  float* score = rho + tokens;
  int* ranked = reinterpret_cast<int*>(score + tokens);
  int* place = ranked + clusters;
  int* rank = place + clusters;
  float* scratch = reinterpret_cast<float*>(rank + tokens);
  const int64_t b = blockIdx.x;

  for (int round = 0; round < f.rounds; ++round)
    fused_distances<kPasses>(image_rows(p.t, b), f, round, chunk, d);

  float top = 0.f;
  for (int e = threadIdx.x; e < tokens * (tokens + 1) / 2; e += blockDim.x) top = fmaxf(top, d[e]);
  top = sqrtf(block_max(top, scratch));

  // Threads beyond tokens * lanes repeat the last token, so that whole warps take part in the shuffles.
  const int lane = int(threadIdx.x) % f.lanes;
  const bool owner = lane == 0 && int(threadIdx.x) / f.lanes < tokens;
  const int i = min(int(threadIdx.x) / f.lanes, tokens - 1);
  const int64_t at = b * tokens + i;

  // density: k times the next larger (distance, index) pair of the row
  float last = -1.f, sum = 0.f;
  int last_index = -1;
  for (int n = 0; n < p.k; ++n) {
    float best = kInf;
    int index = kNone;
    for (int j = lane; j < tokens; j += f.lanes) {
      const float v = packed(d, i, j);
      if ((v > last || (v == last && j > last_index)) && (v < best || (v == best && j < index)))
        best = v, index = j;
    }
    nearest_of_lanes(best, index, f.lanes);
    sum += best;
    last = best;
    last_index = index;
  }
  float own = expf(-sum / float(p.k));
  if (p.noise) own += p.noise[at];
  if (owner) {
    rho[i] = own;
    p.rho[at] = own;
  }
  __syncthreads();

  float best = kInf;
  int index = kNone;
  for (int j = lane; j < tokens; j += f.lanes) {
    const float v = packed(d, i, j);
    if (v < best && is_denser(rho[j], j, own, i, p.strict)) best = v, index = j;
  }
  nearest_of_lanes(best, index, f.lanes);
  if (owner) {
    const float delta = index != kNone ? sqrtf(best) : top;
    const float value = p.exclude && p.exclude[at] ? -kInf : own * delta;
    p.delta[at] = delta;
    p.score[at] = value;
    score[i] = __uint_as_float(sort_key(value));  // the key's bits: they are only compared as numbers below
  }
  __syncthreads();

  if (owner) {
    int before = 0;
    const uint32_t key = __float_as_uint(score[i]);
    for (int j = 0; j < tokens; ++j) {
      const uint32_t other = __float_as_uint(score[j]);
      before += other > key || (other == key && j < i);
    }
    rank[i] = before;
    if (before < clusters) ranked[before] = i;
  }
  __syncthreads();
  for (int r = threadIdx.x; r < clusters; r += blockDim.x) {
    int number = p.by_index ? 0 : r;
    for (int other = 0; p.by_index && other < clusters; ++other) number += ranked[other] < ranked[r];
    place[r] = number;
    p.centers[b * clusters + number] = ranked[r];
  }
  __syncthreads();

  best = kInf;
  index = kNone;
  for (int r = lane; r < clusters; r += f.lanes) {
    const float v = packed(d, ranked[r], i);
    if (v < best) best = v, index = r;
  }
  nearest_of_lanes(best, index, f.lanes);
  int* id = reinterpret_cast<int*>(chunk);  // the chunk has 32 words per token, the merge needs 5 and a few
  if (owner) {
    if (rank[i] < clusters) index = rank[i];
    const int number = place[index == kNone ? 0 : index];
    p.cluster[at] = number;
    id[i] = number;
  }
  if (!m.merged) return;
  __syncthreads();
  fused_merge(image_rows(p.t, b), m, b, id, id + tokens);
}

}  // namespace
}  // namespace tore_fast::cuda
