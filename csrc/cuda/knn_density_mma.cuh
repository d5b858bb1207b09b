// Density of 16-bit tokens with the distances kept in registers: the same numbers as knn_density_fwd_kernel on the tile of
// pairwise_mma.cuh (same products, same order), without a tile of distances in shared memory.
//
// A block owns 128 rows, a warp 16 of them. The block's rows are staged once; up to 128 channels their fragments stay in
// registers. Columns come 64 at a time, 64 channels at a time, through three buffers that cp.async fills two steps ahead: one
// barrier a step. In the layout of mma.m16n8k16 a row belongs to the four lanes of a quad, so each lane keeps the K nearest of
// the columns it sees, and the quad puts its lists together at the end.
//
// What an element costs beside its products: sum of the norms, one fma, two maxima. Only where something of a lane's 16 columns
// lies below the row's limit is it looked at more closely. The limit is the K-th nearest of the whole quad, worked out again
// after 1, 2, 4, 8 ... tiles; the first tiles are the block's own rows, where tokens of an image have most of their neighbours.
#pragma once
#include "knn_density.cuh"

namespace tore_fast::cuda {
namespace {

constexpr int kStreamRows = 128, kStreamThreads = 256, kStreamStages = 3, kStreamNorms = 4;

constexpr int stream_width(int64_t channels) { return int(cdiv(channels, kMmaChunk)) * kMmaChunk; }
// Dynamic shared memory in bytes: the rows, the ring of column chunks, the norms of four column tiles.
constexpr int64_t stream_shared(int64_t channels) {
  return kStreamRows * (stream_width(channels) + 8) * 2 + kStreamStages * kTile * kMmaStride * 2 + kStreamNorms * kTile * 4;
}

// The K-th nearest of a quad's four lists.
template <int K>
__device__ __forceinline__ float quad_limit(const float (&list)[K]) {
  float all[K];
#pragma unroll
  for (int i = 0; i < K; ++i) all[i] = list[i];
#pragma unroll
  for (int step = 1; step < 4; step *= 2) {
    float other[K];
#pragma unroll
    for (int i = 0; i < K; ++i) other[i] = __shfl_xor_sync(0xffffffffu, all[i], step);
#pragma unroll
    for (int i = 0; i < K; ++i) insert(all, other[i]);
  }
  return all[K - 1];
}

// kChunks: 64-channel chunks whose row fragments stay in registers (1, 2), or 0: any number, read from shared memory.
// kFilter: not densities, but lists and largest sums of the rows for knn_density_filter.cuh.
template <int K, bool kIds, int kChunks, bool kBf16, bool kFilter = false>
__global__ void __launch_bounds__(kStreamThreads, 2) knn_density_mma_kernel(const DensityParams p) {
  TF_DYNAMIC_SHARED(uint16_t, shared);
  __shared__ float warp_top[kStreamThreads / 32];
  const int tokens = int(p.t.tokens), channels = int(p.t.channels);
  const int blocks = (tokens + kStreamRows - 1) / kStreamRows, tiles = (tokens + kTile - 1) / kTile;
  const int64_t b = blockIdx.x / blocks;
  const int row0 = int(blockIdx.x % blocks) * kStreamRows;
  const int thread = int(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int chunks = kChunks ? kChunks : (channels + kMmaChunk - 1) / kMmaChunk, stride = chunks * kMmaChunk + 8;
  const uint16_t* x = static_cast<const uint16_t*>(p.t.x) + b * tokens * channels;
  const float* norm = p.t.norm + b * tokens;
  const uint8_t* mask = p.t.mask ? p.t.mask + b * tokens : nullptr;
  uint16_t *rows = shared, *ring = rows + kStreamRows * stride;
  float* norms = reinterpret_cast<float*>(ring + kStreamStages * kTile * kMmaStride);
  if (kIds && !kFilter && row0 == 0 && thread < 2) p.lists.open_count[thread * p.t.batch + b] = 0;

  // 16 bytes of token i, channels c .. c + 7; zeros beyond the channels. Tokens past the end are the last one again: that
  // changes no maximum, and the lists check the index.
  const auto fetch = [&](uint16_t* to, int i, int c) {
    const bool inside = c < channels;
    cp_async<16>(to, x + (inside ? int64_t(min(i, tokens - 1)) * channels + c : 0), inside ? 16 : 0);
  };
  for (int u = thread; u < kStreamRows * chunks * 8; u += kStreamThreads) {
    const int r = u / (chunks * 8), c = u % (chunks * 8) * 8;
    fetch(rows + r * stride + c, row0 + r, c);
  }
  const int own_tile = row0 / kTile;  // tiles go round from here
  int next_tile = 0, next_chunk = 0, next_stage = 0;
  const auto fetch_next = [&] {
    if (next_tile < tiles) {
      const int at = own_tile + next_tile, first = (at < tiles ? at : at - tiles) * kTile;
      uint16_t* to = ring + next_stage * kTile * kMmaStride;
#pragma unroll
      for (int u = thread; u < kTile * kMmaChunk / 8; u += kStreamThreads) {
        const int r = u >> 3, c = (u & 7) * 8;
        fetch(to + r * kMmaStride + c, first + r, next_chunk * kMmaChunk + c);
      }
      if (next_chunk == 0 && thread < kTile)
        cp_async<4>(norms + next_tile % kStreamNorms * kTile + thread, norm + min(first + thread, tokens - 1));
      if (++next_chunk == chunks) next_chunk = 0, ++next_tile;
      next_stage = next_stage + 1 == kStreamStages ? 0 : next_stage + 1;
    }
    cp_async_commit();  // also an empty group: the number of groups under way stays the same
  };
  fetch_next();
  fetch_next();

  const uint16_t* fragment_row = rows + (16 * warp + lane % 16) * stride + 8 * (lane / 16);
  uint32_t fa[kChunks ? 4 * kChunks : 1][4];
  float list[2][K], limit[2], own_norm[2], top[2] = {-kInf, -kInf};
  int ids[2][K];  // unused, and so gone, without kIds
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    own_norm[h] = norm[min(row0 + 16 * warp + lane / 4 + 8 * h, tokens - 1)];
    limit[h] = kInf;
#pragma unroll
    for (int i = 0; i < K; ++i) list[h][i] = kInf, ids[h][i] = kNone;
  }
  const float scale = 1.f / float(channels);
  // A sum of at least `limit` gives a distance of at least the list's last: a little room for the rounding of the two products.
  const float room = float(channels) * 1.000001f;

  int stage = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    float sum[8][4] = {};
#pragma unroll
    for (int chunk = 0; chunk < chunks; ++chunk) {
      cp_async_wait<kStreamStages - 2>();
      __syncthreads();  // this step's columns are there for all; everyone is done with the step before
      fetch_next();
      if (kChunks && tile == 0 && chunk == 0) {
#pragma unroll
        for (int k = 0; k < 4 * kChunks; ++k) ldmatrix_x4(fa[k], fragment_row + 16 * k);
      }
      const uint16_t* columns = ring + stage * kTile * kMmaStride + (lane % 8 + 8 * (lane / 16)) * kMmaStride + 8 * (lane / 8 % 2);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        uint32_t(&a)[4] = fa[kChunks ? 4 * chunk + k : 0];
        if (!kChunks) ldmatrix_x4(a, fragment_row + chunk * kMmaChunk + 16 * k);
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) {  // matrices: columns 0-7 k, 0-7 k+8, 8-15 k, 8-15 k+8
          uint32_t fb[4];
          ldmatrix_x4(fb, columns + 16 * pair * kMmaStride + 16 * k);
          mma_16816<kBf16>(sum[2 * pair], a, fb[0], fb[1]);
          mma_16816<kBf16>(sum[2 * pair + 1], a, fb[2], fb[3]);
        }
      }
      stage = stage + 1 == kStreamStages ? 0 : stage + 1;
    }

    const int at = own_tile + tile, first = (at < tiles ? at : at - tiles) * kTile, column0 = first + 2 * (lane % 4);
    const float* column_norms = norms + tile % kStreamNorms * kTile + 2 * (lane % 4);
    const bool diagonal = first < row0 + kStreamRows && first + kTile > row0;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& s = sum[n][e];
        s = own_norm[e / 2] + column_norms[8 * n + e % 2] - 2.f * s;
        // exactly 0 for a token with itself, but not for one that is not a number
        if (diagonal && row0 + 16 * warp + lane / 4 + 8 * (e / 2) == column0 + 8 * n + e % 2) s -= s;
        top[e / 2] = fmaxf(top[e / 2], s);
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float least = kInf;
#pragma unroll
      for (int n = 0; n < 8; ++n) least = fminf(least, fminf(sum[n][2 * h], sum[n][2 * h + 1]));
      if (least < limit[h]) {
#pragma unroll
        for (int n = 0; n < 8; ++n) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const float s = sum[n][2 * h + e];
            const int column = column0 + 8 * n + e;
            if (!(s < limit[h])) continue;
            const float v = fmaxf(s, 0.f) * scale;
            if (v < list[h][K - 1] && column < tokens && (!mask || mask[column])) {
              if (kIds)
                insert(list[h], ids[h], v, column);
              else
                insert(list[h], v);
              limit[h] = fminf(limit[h], list[h][K - 1] * room);
            }
          }
        }
      }
      if ((tile & (tile + 1)) == 0) limit[h] = fminf(limit[h], quad_limit(list[h]) * room);
    }
  }

#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
      float other[K];
      int other_ids[K];
#pragma unroll
      for (int i = 0; i < K; ++i) other[i] = __shfl_xor_sync(0xffffffffu, list[h][i], step);
      if (kIds) {
#pragma unroll
        for (int i = 0; i < K; ++i) other_ids[i] = __shfl_xor_sync(0xffffffffu, ids[h][i], step);
#pragma unroll
        for (int i = 0; i < K; ++i) insert(list[h], ids[h], other[i], other_ids[i]);
      } else {
#pragma unroll
        for (int i = 0; i < K; ++i) insert(list[h], other[i]);
      }
    }
  }
  const float block_top = block_max(fmaxf(fmaxf(top[0], top[1]), 0.f) * scale, warp_top);
  if (thread < kStreamRows / kTile && own_tile + thread < tiles)
    (kFilter ? p.filter.top : p.top)[b * tiles + own_tile + thread] = block_top;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = row0 + 16 * warp + lane / 4 + 8 * h;
    if constexpr (kFilter) {
#pragma unroll
      for (int step = 1; step < 4; step *= 2) top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], step));
      if (row >= tokens || lane % 4) continue;
      p.filter.row_top[b * tokens + row] = fmaxf(top[h], 0.f) * scale;
#pragma unroll
      for (int i = 0; i < K; ++i) {
        p.filter.near[(b * tokens + row) * K + i] = list[h][i];
        p.filter.near_id[(b * tokens + row) * K + i] = ids[h][i];
      }
    } else {
      if (row < tokens && lane % 4 == 0) write_density<K, kIds>(p, b, row, mask, list[h], ids[h]);
    }
  }
}

}  // namespace
}  // namespace tore_fast::cuda
