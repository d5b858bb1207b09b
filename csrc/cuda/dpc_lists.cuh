// What the nearest neighbours decide without another look at the distances. Most tokens have a denser one, and a centre,
// among their k nearest (which knn_density has just found); only the others go on to density_delta and dpc_assign, through a
// list of their own. Exact: whatever is closer than an entry of the list is in the list, too. csrc/cpu does the same.
//
// TCFormer's first two merges on seven photographs and renderings, random and trained weights (k = 5, a quarter of the tokens
// as centres): 6 to 13 % of the tokens stay open for delta, 11 to 46 % for the assignment, so every pair's distance is made
// 1.15 to 1.2 times instead of 2.25. The order of `open` depends on which thread comes first; the results do not, every row is
// worked out on its own.
#pragma once
#include "clustering.cuh"

namespace tore_fast::cuda {
namespace {

constexpr int kListThreads = 256;

// delta and score where a neighbour is denser: the first such one is the nearest denser token at all.
__global__ void __launch_bounds__(kListThreads) dpc_listed_delta_kernel(const DpcParams p) {
  const int64_t i = int64_t(blockIdx.x) * kListThreads + threadIdx.x;
  if (i >= p.t.batch * p.t.tokens) return;
  const int64_t b = i / p.t.tokens, first = b * p.t.tokens;
  const int token = int(i - first);
  const float own = p.rho[i];
  for (int s = 0; s < p.k; ++s) {
    const float d2 = p.lists.d2[i * p.k + s];
    if (!(d2 < kInf)) break;
    const int other = p.lists.id[i * p.k + s];
    if (!is_denser(p.rho[first + other], other, own, token, p.strict)) continue;
    const float delta = sqrtf(d2);
    p.delta[i] = delta;
    p.score[i] = p.exclude && p.exclude[i] ? -kInf : own * delta;
    return;
  }
  p.lists.open[first + atomicAdd(&p.lists.open_count[b], 1)] = token;
}

// Cluster of a centre, and of every token with a centre nearer than the last of its neighbours (at that very distance more
// centres may lie outside the list); of several at the same distance the lowest rank.
__global__ void __launch_bounds__(kListThreads) dpc_listed_assign_kernel(const DpcParams p) {
  const int64_t i = int64_t(blockIdx.x) * kListThreads + threadIdx.x;
  if (i >= p.t.batch * p.t.tokens) return;
  const int64_t b = i / p.t.tokens, first = b * p.t.tokens;
  int rank = p.rank[i];
  if (rank >= p.clusters) {
    const float* d2 = p.lists.d2 + i * p.k;
    const float last = d2[p.k - 1];
    float nearest = last;
    rank = kNone;
    for (int s = 0; s < p.k && d2[s] < last && d2[s] <= nearest; ++s) {
      const int other = p.rank[first + p.lists.id[i * p.k + s]];
      if (other >= p.clusters) continue;
      nearest = d2[s];
      rank = min(rank, other);
    }
  }
  if (rank != kNone)
    p.cluster[i] = p.place[b * p.clusters + rank];
  else
    p.lists.open[first + atomicAdd(&p.lists.open_count[p.t.batch + b], 1)] = int(i - first);
}

}  // namespace
}  // namespace tore_fast::cuda
