// Included by exactly two files, which define TORE_FAST_NAME; no std containers (see pairwise_loops.h).
#include <cmath>
#include <cstdint>

#include "fit_landmarks.h"

namespace tore_fast::cpu {

void TORE_FAST_NAME(fit_rank_update)(double* h, int n, const int* at, int m, const double* rows, int count, int stride,
                                     double* __restrict sum) {
  for (int a = 0; a < m; ++a) {
    for (int b = 0; b <= a; ++b) sum[b] = 0;
    for (int r = 0; r < count; ++r) {
      const double* __restrict row = rows + r * stride;
      const double left = row[a];
      if (left == 0) continue;
      for (int b = 0; b <= a; ++b) sum[b] += left * row[b];
    }
    double* out = h + int64_t(at[a]) * n;
    for (int b = 0; b <= a; ++b) out[at[b]] += sum[b];
  }
}

bool TORE_FAST_NAME(fit_solve)(double* h, int n, double* g) {
  // right-looking on the transposed (upper) triangle, so that the inner loops run along rows
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < i; ++j) h[int64_t(j) * n + i] = h[int64_t(i) * n + j];
  for (int k = 0; k < n; ++k) {
    double* __restrict top = h + int64_t(k) * n;
    const double pivot = top[k];
    if (!(pivot > 0) || !(pivot < 1e300)) return false;
    const double scale = 1 / std::sqrt(pivot);
    for (int j = k; j < n; ++j) top[j] *= scale;
    for (int i = k + 1; i < n; ++i) {
      const double left = top[i];
      if (left == 0) continue;
      double* __restrict row = h + int64_t(i) * n;
      for (int j = i; j < n; ++j) row[j] -= left * top[j];
    }
  }
  for (int k = 0; k < n; ++k) {  // U^T y = -g
    const double* top = h + int64_t(k) * n;
    const double y = (k ? g[k] : -g[k]) / top[k];
    g[k] = y;
    if (k == 0)
      for (int j = 1; j < n; ++j) g[j] = -g[j] - y * top[j];
    else
      for (int j = k + 1; j < n; ++j) g[j] -= y * top[j];
  }
  for (int k = n - 1; k >= 0; --k) {  // U x = y
    const double* top = h + int64_t(k) * n;
    double x = g[k];
    for (int j = k + 1; j < n; ++j) x -= top[j] * g[j];
    g[k] = x / top[k];
  }
  return true;
}

}  // namespace tore_fast::cpu
