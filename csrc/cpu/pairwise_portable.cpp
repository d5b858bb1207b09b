// Baseline instruction set of the platform, and the choice between the two builds of the loops.
#define TORE_FAST_LANES 4
#define TORE_FAST_TABLE pairwise_portable
#include "pairwise_loops.h"

#include <cstdlib>
#include <cstring>

namespace tore_fast::cpu {

// TORE_FAST_CPU=portable switches the AVX2 build off (for tests and for finding a miscompiled loop).
const Pairwise& pairwise() {
#if defined(__x86_64__) || defined(_M_X64)
  static const bool fast = [] {
    const char* wish = std::getenv("TORE_FAST_CPU");
    if (wish && std::strcmp(wish, "portable") == 0) return false;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  }();
  if (fast) return pairwise_avx2;
#endif
  return pairwise_portable;
}

}  // namespace tore_fast::cpu
