// The clustering launchers of csrc/cuda, compiled for the emulator, behind a C interface for ctypes.
#include "cuda_runtime_api.h"
//
#include "../../csrc/cuda/cluster_merge.cu"
#include "../../csrc/cuda/density_delta.cu"
#include "../../csrc/cuda/dpc_knn_cluster.cu"
#include "../../csrc/cuda/knn_density.cu"
#include "../../csrc/cuda/token_map.cu"

using namespace tore_fast::cuda;

namespace {
std::vector<float> norms, near;
std::vector<int32_t> near_ids, open, open_count;

NearLists lists_of(const uint8_t* mask, int64_t batch, int64_t tokens, int64_t k) {
  if (!uses_lists(mask, k)) return {};
  near.assign(batch * tokens * k, NAN);
  near_ids.assign(batch * tokens * k, -7);
  open.assign(batch * tokens, -7);
  open_count.assign(2 * batch, -7);
  return {near.data(), near_ids.data(), open.data(), open_count.data()};
}

TokensParams tokens_of(const void* x, int dtype, const uint8_t* mask, int64_t batch, int64_t tokens,
                       int64_t channels) {
  const bool aligned = reinterpret_cast<uintptr_t>(x) % 16 == 0;
  norms.assign(batch * tokens, NAN);
  return {x,
          DType(dtype),
          channels % 4 == 0,
          mask,
          batch,
          tokens,
          channels,
          can_use_mma(DType(dtype), aligned, channels) ? norms.data() : nullptr};
}
}  // namespace

extern "C" {

void emulator_setup(unsigned seed, int64_t shared_limit) {
  emulator::seed = seed;
  emulator::shared_limit = shared_limit;
}

int emulated_knn_density(const void* x, int dtype, const uint8_t* mask, int64_t batch, int64_t tokens,
                         int64_t channels, int64_t k, float* rho) {
  std::vector<float> top(top_size(batch, tokens), NAN);
  return knn_density({tokens_of(x, dtype, mask, batch, tokens, channels), nullptr, int(k), rho, top.data()},
                     nullptr);
}

int emulated_density_delta(const void* x, int dtype, const uint8_t* mask, int64_t batch, int64_t tokens,
                           int64_t channels, const float* rho, int64_t strict, float* delta,
                           int64_t* parent) {
  std::vector<float> top(top_size(batch, tokens), NAN);
  return density_delta({tokens_of(x, dtype, mask, batch, tokens, channels), rho, strict != 0, top.data(),
                        false, delta, parent, nullptr, nullptr},
                       nullptr);
}

int emulated_one_launch(int64_t tokens) {
  return dpc_one_launch({nullptr, DType::kFloat32, true, nullptr, 1, tokens, 4, nullptr}, 0);
}

int emulated_dpc_knn_cluster(const void* x, int dtype, const uint8_t* mask, int64_t batch, int64_t tokens,
                             int64_t channels, int64_t clusters, int64_t k, const uint8_t* exclude,
                             const float* noise, int64_t strict, int64_t by_index, int64_t masked,
                             int64_t* centers, int64_t* cluster, float* rho, float* delta, float* score) {
  std::vector<float> top(top_size(batch, tokens), NAN);
  std::vector<int32_t> rank(batch * tokens, -7), ranked(batch * clusters, -7), place(batch * clusters, -7);
  return dpc_knn_cluster({tokens_of(x, dtype, mask, batch, tokens, channels), exclude, noise, int(k),
                          int(clusters), int(masked), strict != 0, by_index != 0, centers, cluster, rho,
                          delta, score, top.data(), rank.data(), ranked.data(), place.data(),
                          lists_of(mask, batch, tokens, k)},
                         0, nullptr);
}

int emulated_dpc_knn_cluster_merge(const void* x, int dtype, const uint8_t* mask, int64_t batch, int64_t tokens,
                                   int64_t channels, int64_t clusters, int64_t k, int64_t masked, const float* weight,
                                   int64_t cells, const int64_t* idx_token, const float* agg_weight, int64_t* centers,
                                   int64_t* cluster, float* rho, float* delta, float* score, void* merged,
                                   float* norm_weight, float* total, int64_t* new_idx_token, float* new_agg_weight) {
  std::vector<float> top(top_size(batch, tokens), NAN);
  std::vector<int32_t> rank(batch * tokens, -7), ranked(batch * clusters, -7), place(batch * clusters, -7);
  std::vector<int32_t> row_ptr(batch * (clusters + 1), -7), items(batch * tokens, -7);
  const bool one = dpc_one_launch(tokens_of(x, dtype, mask, batch, tokens, channels), 0);
  return dpc_knn_cluster_merge(
      {tokens_of(x, dtype, mask, batch, tokens, channels), nullptr, nullptr, int(k), int(clusters), int(masked), false,
       true, centers, cluster, rho, delta, score, top.data(), rank.data(), ranked.data(), place.data(),
       lists_of(mask, batch, tokens, k)},
      {x, cluster, weight, batch, tokens, clusters, channels, merged, norm_weight, total, cells, idx_token, agg_weight,
       new_idx_token, new_agg_weight, one ? nullptr : row_ptr.data(), one ? nullptr : items.data(), !mask || masked >= 0},
      0, nullptr);
}

int emulated_cluster_merge(const void* x, int dtype, const int64_t* cluster, const float* weight,
                           int64_t batch, int64_t tokens, int64_t clusters, int64_t channels, void* merged,
                           float* norm_weight, float* total, int64_t cells, const int64_t* idx_token,
                           const float* agg_weight, int64_t* new_idx_token, float* new_agg_weight) {
  std::vector<int32_t> row_ptr(batch * (clusters + 1), -7), items(batch * tokens, -7);
  return cluster_merge(
      {x, cluster, weight, batch, tokens, clusters, channels, merged, norm_weight, total, cells, idx_token,
       agg_weight, new_idx_token, new_agg_weight, row_ptr.data(), items.data(), false},
      DType(dtype), nullptr);
}

int emulated_cluster_merge_backward(const void* grad, const void* x, int dtype, const int64_t* cluster,
                                    const float* norm_weight, const float* total, const void* merged,
                                    int64_t batch, int64_t tokens, int64_t clusters, int64_t channels,
                                    void* grad_x, float* grad_weight) {
  return cluster_merge_backward(
      {grad, x, cluster, norm_weight, total, merged, batch, tokens, clusters, channels, grad_x, grad_weight},
      DType(dtype), nullptr);
}

int emulated_group_by_id(const int64_t* id, int64_t batch, int64_t count, int64_t groups, int32_t* row_ptr,
                         int32_t* items) {
  return group_by_id(id, batch, count, groups, row_ptr, items, nullptr);
}

int emulated_token_map(const void* x, int dtype, const int32_t* dst_ptr, const int32_t* dst_cells,
                       const int64_t* src_idx, const float* weight, const float* src_scale, int64_t batch,
                       int64_t cells, int64_t num_src, int64_t num_dst, int64_t channels, int64_t h0,
                       int64_t w0, int64_t h, int64_t w, int64_t normalize, void* out, float* scale) {
  return token_map({x, dst_ptr, dst_cells, src_idx, weight, src_scale, batch, cells, num_src, num_dst,
                    channels, int(h0), int(w0), int(h), int(w), normalize != 0, out, scale},
                   DType(dtype), nullptr);
}

}  // extern "C"
