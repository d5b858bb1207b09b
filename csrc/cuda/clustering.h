// Arguments of the clustering launchers. Pointers are device memory, tensors contiguous; see
// ops/dpc_knn_cluster.py.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "cluster_merge.h"
#include "common.h"

namespace tore_fast::cuda {

struct TokensParams {
  const void* x;  // [batch, tokens, channels]
  DType dtype;
  bool vectorised;      // channels % 4 == 0 and x aligned to four elements
  const uint8_t* mask;  // [batch, tokens], non-zero = real token; or nullptr
  int64_t batch, tokens, channels;
  float*
      norm;  // workspace [batch, tokens] of 16-bit tokens on the matrix units (see can_use_mma), else nullptr
};

// Whether the streaming kernels may use the matrix units: 16-bit tokens in whole 16-byte pieces. `x` 16-byte
// aligned.
constexpr bool can_use_mma(DType dtype, bool aligned, int64_t channels) {
  return dtype != DType::kFloat32 && aligned && channels % 8 == 0;
}

// Squared norms of the tokens into t.norm; knn_density and density_delta call it themselves.
cudaError_t token_norms(const TokensParams& t, cudaStream_t stream);

// Length of the workspace `top`: one number per 64 tokens and image.
constexpr int64_t top_size(int64_t batch, int64_t tokens) { return batch * ((tokens + 63) / 64); }

// Nearest tokens of every token, and which tokens they leave undecided; all nullptr: not wanted. See dpc_lists.cuh.
struct NearLists {
  float* d2;      // [batch, tokens, k] ascending; infinite: no such neighbour
  int32_t* id;    // [batch, tokens, k]
  int32_t* open;  // [batch, tokens] the undecided tokens of an image, in any order
  int32_t* open_count;  // [2, batch] how many: without a denser token, without a centre among the neighbours
};
// Whether dpc_knn_cluster on many tokens wants the lists: no mask, and they stay in registers.
constexpr bool uses_lists(const uint8_t* mask, int64_t k) { return !mask && k <= 8; }

// Workspace of the filter for float32 tokens (knn_density_filter.cuh), where density_uses_filter says so; x null: not used.
struct DensityFilter {
  void* x;                         // [batch, tokens, channels] the tokens in float16
  int channels;                    // filter_channels of theirs
  float *norm, *error, *row_top;   // [batch, tokens]
  float* top;                      // [batch, ceil(tokens / 64)]
  float* near;                     // [batch, tokens, kFilterNear]
  int32_t *near_id, *open;         // [batch, tokens, kFilterNear], [batch, tokens]
  unsigned* bounds;                // [batch, 2], before open_count
  int32_t* open_count;             // [batch]
};
constexpr int kFilterNear = 8;  // nearest tokens that the filter keeps
constexpr int64_t filter_channels(int64_t channels) { return (channels + 7) / 8 * 8; }
constexpr int64_t filter_words(int64_t batch, int64_t tokens) {
  return batch * (tokens * (2 * kFilterNear + 4) + (tokens + 63) / 64 + 3);
}
bool density_uses_filter(const TokensParams& t, int64_t k);

struct DensityParams {
  TokensParams t;
  const float* noise;  // [batch, tokens] added to the density, or nullptr
  int k;
  float* rho;  // [batch, tokens]
  float* top;  // [batch, ceil(tokens / 64)] out: their maximum is the image's largest d2
  NearLists lists;
  DensityFilter filter;
};
cudaError_t knn_density_filtered(const DensityParams& p, cudaStream_t stream);
cudaError_t knn_density(const DensityParams& p, cudaStream_t stream);

struct DeltaParams {
  TokensParams t;
  const float* rho;  // [batch, tokens]
  bool strict;
  float* top;  // [batch, ceil(tokens / 64)]; in if top_known (made by knn_density from the same tokens), else
               // out
  bool top_known;
  float* delta;            // [batch, tokens]
  int64_t* parent;         // [batch, tokens] or nullptr
  float* score;            // [batch, tokens] rho * delta or nullptr; needs top_known
  const uint8_t* exclude;  // [batch, tokens] score = -inf, or nullptr
  const int32_t *open, *open_count;  // [batch, tokens], [batch] only these tokens (needs top_known), or nullptr: all
};
cudaError_t density_delta(const DeltaParams& p, cudaStream_t stream);

struct DpcParams {
  TokensParams t;
  const uint8_t* exclude;  // [batch, tokens] or nullptr
  const float* noise;      // [batch, tokens] or nullptr
  int k, clusters, masked;
  bool strict, by_index;
  int64_t* centers;            // [batch, clusters]
  int64_t* cluster;            // [batch, tokens]
  float *rho, *delta, *score;  // [batch, tokens]
  // workspace of the streaming path (dpc_one_launch says whether it is needed)
  float* top;               // [batch, ceil(tokens / 64)]
  int32_t* rank;            // [batch, tokens]
  int32_t *ranked, *place;  // [batch, clusters]
  NearLists lists;          // where uses_lists says so
  DensityFilter filter;     // where density_uses_filter says so
};
// Whether one launch does it all on the current device: few tokens, no mask.
bool dpc_one_launch(const TokensParams& t);
cudaError_t dpc_knn_cluster(const DpcParams& p, cudaStream_t stream);
// The same and cluster_merge of the same tokens by m.cluster == p.cluster: in that one launch where it fits
// (m.row_ptr and m.items may then be nullptr), else one after the other.
cudaError_t dpc_knn_cluster_merge(const DpcParams& p, const ClusterMergeParams& m, cudaStream_t stream);

}  // namespace tore_fast::cuda
