// Included by exactly two files, which define TORE_FAST_NAME; no std containers (see pairwise_loops.h).
#include <cmath>
#include <cstdint>

#include "fit_landmarks.h"

namespace tore_fast::cpu {

void TORE_FAST_NAME(fit_rank_update)(double* h, int n, const int* at, int m, const double* rows,
                                     double* __restrict sum) {
  const double* __restrict r0 = rows, * __restrict r1 = rows + m, * __restrict r2 = rows + 2 * m, * __restrict r3 = rows + 3 * m, * __restrict r4 = rows + 4 * m;
  for (int a = 0; a < m; ++a) {
    const double l0 = r0[a], l1 = r1[a], l2 = r2[a], l3 = r3[a], l4 = r4[a];
    for (int b = 0; b <= a; ++b) sum[b] = l0 * r0[b] + l1 * r1[b] + l2 * r2[b] + l3 * r3[b] + l4 * r4[b];
    double* out = h + int64_t(at[a]) * n;
    for (int b = 0; b <= a; ++b) out[at[b]] += sum[b];
  }
}

bool TORE_FAST_NAME(fit_solve)(double* h, int n, double* g) {
  constexpr int kPanel = 4;
  // right-looking on the transposed (upper) triangle, so that the inner loops run along rows
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < i; ++j) h[int64_t(j) * n + i] = h[int64_t(i) * n + j];
  for (int first = 0; first < n; first += kPanel) {
    const int last = first + kPanel < n ? first + kPanel : n;
    for (int k = first; k < last; ++k) {
      double* __restrict top = h + int64_t(k) * n;
      const double pivot = top[k];
      if (!(pivot > 0) || !(pivot < 1e300)) return false;
      const double scale = 1 / std::sqrt(pivot);
      for (int j = k; j < n; ++j) top[j] *= scale;
      for (int i = k + 1; i < last; ++i) {
        const double left = top[i];
        double* __restrict row = h + int64_t(i) * n;
        for (int j = i; j < n; ++j) row[j] -= left * top[j];
      }
    }
    if (last - first < kPanel) break;  // nothing below it
    const double* __restrict t0 = h + int64_t(first) * n;
    const double* __restrict t1 = t0 + n, * __restrict t2 = t1 + n, * __restrict t3 = t2 + n;
    for (int i = last; i < n; ++i) {
      const double l0 = t0[i], l1 = t1[i], l2 = t2[i], l3 = t3[i];
      double* __restrict row = h + int64_t(i) * n;
      for (int j = i; j < n; ++j) row[j] -= l0 * t0[j] + l1 * t1[j] + l2 * t2[j] + l3 * t3[j];
    }
  }
  for (int k = 0; k < n; ++k) g[k] = -g[k];
  for (int k = 0; k < n; ++k) {  // U^T y = -g
    const double* __restrict top = h + int64_t(k) * n;
    const double y = g[k] / top[k];
    g[k] = y;
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
