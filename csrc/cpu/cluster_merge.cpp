#include "cluster_merge.h"

#include <algorithm>

#include "row_sum.h"

namespace tore_fast::cpu {
namespace {

constexpr float kEps = 1e-6f;
constexpr int64_t kClustersPerTask = 64;

void one_cluster(const ClusterMergeParams& p, int64_t b, int64_t c, const int32_t* first, const int32_t* last,
                 std::vector<float>& shares) {
  const float* weight = p.weight ? p.weight + b * p.tokens : nullptr;
  float total = 0.f;
  for (const int32_t* j = first; j != last; ++j) total += weight ? weight[*j] : 1.f;
  total += kEps;
  p.total[b * p.clusters + c] = total;
  shares.clear();
  for (const int32_t* j = first; j != last; ++j) {
    const float share = (weight ? weight[*j] : 1.f) / total;
    p.norm_weight[b * p.tokens + *j] = share;
    shares.push_back(share);
  }
  const float* x = p.x + b * p.tokens * p.channels;
  float* y = p.merged + (b * p.clusters + c) * p.channels;
  row_sum()(x, p.channels, first, shares.data(), last - first, 1.f, y);
}

}  // namespace

void group_by_id(const int64_t* id, int64_t count, int64_t groups, int32_t* row_ptr, int32_t* items) {
  std::fill(row_ptr, row_ptr + groups + 1, 0);
  const auto valid = [&](int64_t i) { return id[i] >= 0 && id[i] < groups; };
  for (int64_t i = 0; i < count; ++i)
    if (valid(i)) ++row_ptr[id[i] + 1];
  for (int64_t g = 0; g < groups; ++g) row_ptr[g + 1] += row_ptr[g];
  std::vector<int32_t> next(row_ptr, row_ptr + groups);
  for (int64_t i = 0; i < count; ++i)
    if (valid(i)) items[next[id[i]]++] = int32_t(i);
  std::fill(items + row_ptr[groups], items + count, -1);
}

void cluster_merge(const ClusterMergeParams& p, const Parallel& parallel) {
  std::vector<int32_t> row_ptr(p.batch * (p.clusters + 1)), items(p.batch * p.tokens);
  parallel.run(p.batch, [&](int64_t b) {
    const int64_t* id = p.cluster + b * p.tokens;
    group_by_id(id, p.tokens, p.clusters, row_ptr.data() + b * (p.clusters + 1), items.data() + b * p.tokens);
    for (int64_t i = 0; i < p.tokens; ++i)
      if (id[i] < 0 || id[i] >= p.clusters) p.norm_weight[b * p.tokens + i] = 0.f;
  });
  const int64_t tasks = (p.clusters + kClustersPerTask - 1) / kClustersPerTask;
  parallel.run(p.batch * tasks, [&](int64_t task) {
    const int64_t b = task / tasks, begin = task % tasks * kClustersPerTask;
    const int32_t* ptr = row_ptr.data() + b * (p.clusters + 1);
    const int32_t* of_image = items.data() + b * p.tokens;
    std::vector<float> shares;
    for (int64_t c = begin; c < std::min(begin + kClustersPerTask, p.clusters); ++c)
      one_cluster(p, b, c, of_image + ptr[c], of_image + ptr[c + 1], shares);
  });
  for (int64_t i = 0; i < p.batch * p.cells; ++i) {
    const int64_t token = p.idx_token[i], b = i / p.cells;
    const bool valid = token >= 0 && token < p.tokens;
    p.new_idx_token[i] = valid ? p.cluster[b * p.tokens + token] : -1;
    p.new_agg_weight[i] = valid ? p.agg_weight[i] * p.norm_weight[b * p.tokens + token] : 0.f;
  }
}

void cluster_merge_backward(const ClusterMergeBackwardParams& p, int64_t begin, int64_t end) {
  for (int64_t j = begin; j < end; ++j) {
    const int64_t c = p.cluster[j];
    float* grad_x = p.grad_x + j * p.channels;
    if (c < 0 || c >= p.clusters) {
      std::fill(grad_x, grad_x + p.channels, 0.f);
      p.grad_weight[j] = 0.f;
      continue;
    }
    const int64_t row = j / p.tokens * p.clusters + c;
    const float *g = p.grad + row * p.channels, *y = p.merged + row * p.channels, *x = p.x + j * p.channels;
    const float share = p.norm_weight[j];
    constexpr int kLanes = 8;  // independent partial sums: vectorises, and rounds less
    float dot[kLanes] = {};
    int64_t f = 0;
    for (; f + kLanes <= p.channels; f += kLanes) {
      for (int l = 0; l < kLanes; ++l) {
        grad_x[f + l] = share * g[f + l];
        dot[l] += g[f + l] * (x[f + l] - y[f + l]);
      }
    }
    float sum = 0.f;
    for (int l = 0; l < kLanes; ++l) sum += dot[l];
    for (; f < p.channels; ++f) {
      grad_x[f] = share * g[f];
      sum += g[f] * (x[f] - y[f]);
    }
    p.grad_weight[j] = sum / p.total[row];
  }
}

}  // namespace tore_fast::cpu
