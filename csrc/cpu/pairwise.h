// Distances between tokens, tile by tile: the inner loops of knn_density, density_delta and dpc_knn_cluster.
//
// Tokens are packed in panels of 16: panel[channel][16 tokens], so a tile reads 16 neighbouring tokens per
// load. A tile of 16 x 16 squared distances is made of direct differences (exactly symmetric, exactly zero
// diagonal) and consumed at once; no N x N matrix exists. The loops are written once (pairwise_loops.h) and
// compiled twice: pairwise_avx2.cpp and pairwise_portable.cpp; pairwise() picks one at run time. Raw pointers
// only: an inline function of the standard library would be shared with code for lesser machines.
#pragma once
#include <cstdint>

namespace tore_fast::cpu {

constexpr int kPanel = 16;

// A share of the row panels: panels p with p / parts alternately counted up and down, so that triangular work
// is even.
struct Share {
  int64_t part, parts;
};

// Packed tokens of one image.
struct Panels {
  const float* data;  // [count][channels][16]
  int64_t count;      // panels
  int64_t channels;
  float scale;  // 1 / channels: d2 = scale * sum of squared differences
};

struct Pairwise {
  // The 16 rows of one panel, transposed into out[channel][16].
  void (*pack)(const float* const* rows, int64_t channels, float* out);

  // The k smallest d2 of every token among this share of the pairs p <= q, ascending: best [count][k][16], and
  // (ids != nullptr) the tokens they belong to, same layout. penalty [count * 16] is added to every candidate (0
  // or +inf: padding, empty tokens). Returns the largest d2 of the share. With `matrix` != nullptr every tile is
  // also stored there, [count * 16][count * 16].
  float (*density)(const Panels& x, const float* penalty, int64_t k, Share share, float* best, int32_t* ids,
                   float* matrix);

  // Tokens in order of descending density: the nearest of the first limit[p] tokens, for every token p of the
  // share. best [count * 16] d2, parent [count * 16] original index (ids) or INT32_MAX. Returns the largest
  // d2 of the share.
  float (*delta)(const Panels& x, const int32_t* limit, const int32_t* ids, Share share, float* best,
                 int32_t* parent);

  // The same for a few tokens `of` against the ordered tokens `x`, distances only: best [of.count * 16] d2 to the
  // nearest of the first limit[] tokens, for the panels of this share.
  void (*nearest_before)(const Panels& x, const Panels& of, const int32_t* limit, Share share, float* best);

  // rank [16 * panels] of the nearest centre, ties to the lowest; token panels [begin, end). `centers` is
  // padded with copies of its last token, which therefore never win a tie.
  void (*assign)(const Panels& x, const Panels& centers, int64_t begin, int64_t end, int32_t* rank);

  // The same two steps from a stored matrix [stride][stride], for its columns [begin, end) (whole panels); rho is
  // padded to a multiple of 16.
  void (*delta_of_matrix)(const float* matrix, int64_t stride, const float* rho, int64_t tokens, bool strict,
                          int64_t begin, int64_t end, float* best, int32_t* parent);
  void (*assign_of_matrix)(const float* matrix, int64_t stride, const int32_t* centers, int64_t count,
                           int64_t begin, int64_t end, int32_t* rank);
};

extern const Pairwise pairwise_portable;
#if defined(__x86_64__) || defined(_M_X64)
extern const Pairwise pairwise_avx2;
#endif

const Pairwise& pairwise();

}  // namespace tore_fast::cpu
