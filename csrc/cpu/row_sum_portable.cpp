// Baseline instruction set of the platform, and the run-time choice between the two builds of the loops.
#define TORE_FAST_LANES 4
#define TORE_FAST_ROW_SUM row_sum_portable
#include "row_sum_loops.h"

#include <cstdlib>
#include <cstring>

namespace tore_fast::cpu {

bool use_avx2() {
#if defined(__x86_64__) || defined(_M_X64)
  static const bool fast = [] {
    // TORE_FAST_CPU=portable: for tests, and for finding a miscompiled loop
    const char* wish = std::getenv("TORE_FAST_CPU");
    if (wish && std::strcmp(wish, "portable") == 0) return false;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  }();
  return fast;
#else
  return false;
#endif
}

RowSum row_sum() {
#if defined(__x86_64__) || defined(_M_X64)
  if (use_avx2()) return row_sum_avx2;
#endif
  return row_sum_portable;
}

}  // namespace tore_fast::cpu
