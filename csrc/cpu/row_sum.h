// out = scale * sum over n of factors[n] * x[rows[n], :], the inner loop of cluster_merge and token_map. Sums
// run over ascending n and stay in registers. Built twice from row_sum_loops.h, picked at run time (see
// pairwise.h).
#pragma once
#include <cstdint>

namespace tore_fast::cpu {

using RowSum = void (*)(const float* x, int64_t channels, const int32_t* rows, const float* factors,
                        int64_t count, float scale, float* out);

void row_sum_portable(const float* x, int64_t channels, const int32_t* rows, const float* factors,
                      int64_t count, float scale, float* out);
void row_sum_avx2(const float* x, int64_t channels, const int32_t* rows, const float* factors, int64_t count,
                  float scale, float* out);

// The processor has AVX2 and FMA, and TORE_FAST_CPU=portable is not set.
bool use_avx2();
RowSum row_sum();

}  // namespace tore_fast::cpu
