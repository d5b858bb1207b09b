// Distance to the nearest denser token: blocks of 64 rows, all columns streamed past them, a running (min,
// index) per row. The rows are all tokens, or those that the lists of nearest neighbours left open (dpc_lists.cuh).
#pragma once
#include "clustering.cuh"

namespace tore_fast::cuda {
namespace {

template <typename Stage>
__global__ void __launch_bounds__(kTileThreads, 2) density_delta_fwd_kernel(const DeltaParams p) {
  __shared__ Stage s;
  __shared__ float d[kTile * kTileStride];
  __shared__ float column_rho[kTile];
  __shared__ float scratch[kTileThreads / 32];
  const int tokens = int(p.t.tokens), tiles = (tokens + kTile - 1) / kTile;
  const int64_t b = blockIdx.x / tiles;
  const int row0 = int(blockIdx.x % tiles) * kTile, count = p.open ? p.open_count[b] : tokens;
  if (row0 >= count) return;
  const bool used = row0 + tile_row() < count;
  const TokenRows columns = image_rows(p.t, b), rows = picked_rows(columns, p.open, b, count);
  const int row = token_of(rows, row0 + tile_row());
  const uint8_t* mask = p.t.mask ? p.t.mask + b * tokens : nullptr;
  const float* rho = p.rho + b * tokens;
  const float own = rho[row];

  float best = kInf, top = 0.f;
  int parent = kNone;
  for (int column0 = 0; column0 < tokens; column0 += kTile) {
    __syncthreads();  // column_rho of the previous tile has been read
    if (threadIdx.x < kTile) column_rho[threadIdx.x] = rho[min(column0 + int(threadIdx.x), tokens - 1)];
    distance_tile(rows, row0, columns, column0, s, d);
    for (int step = 0; step < kColumnSteps; ++step) {
      const int at = tile_column(step), column = column0 + at;
      if (column >= tokens) continue;
      const float v = d[tile_row() * kTileStride + at];
      top = fmaxf(top, v);  // rows beyond the end repeat the last one
      if (v < best && is_denser(column_rho[at], column, own, row, p.strict) && (!mask || mask[column])) {
        best = v;
        parent = column;
      }
    }
  }
  nearest_of_lanes(best, parent, kThreadsPerRow);
  if (p.top_known) {
    top = largest_distance(p.t, p.top, b, scratch);
  } else {
    const float largest = block_max(top, scratch);
    if (threadIdx.x == 0) p.top[blockIdx.x] = largest;
  }
  if (!used || threadIdx.x % kThreadsPerRow != 0) return;
  const int64_t i = b * tokens + row;
  const bool found = parent != kNone;
  // unknown maximum: density_delta_fill_kernel replaces the -1
  const float delta = found ? sqrtf(best) : (p.top_known ? top : -1.f);
  p.delta[i] = delta;
  if (p.parent) p.parent[i] = found ? parent : -1;
  if (p.score) p.score[i] = p.exclude && p.exclude[i] ? -kInf : own * delta;
}

// One block per image.
__global__ void __launch_bounds__(kTileThreads) density_delta_fill_kernel(const DeltaParams p) {
  __shared__ float scratch[kTileThreads / 32];
  const int64_t b = blockIdx.x;
  const float top = largest_distance(p.t, p.top, b, scratch);
  for (int64_t i = threadIdx.x; i < p.t.tokens; i += kTileThreads) {
    float& delta = p.delta[b * p.t.tokens + i];
    if (delta < 0.f) delta = top;
  }
}

}  // namespace
}  // namespace tore_fast::cuda
