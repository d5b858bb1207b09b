// Baseline instruction set of the platform, and the choice between the two builds of the loops.
#define TORE_FAST_LANES 4
#define TORE_FAST_TABLE pairwise_portable
#include "pairwise_loops.h"

#include "row_sum.h"

namespace tore_fast::cpu {

const Pairwise& pairwise() {
#if defined(__x86_64__) || defined(_M_X64)
  if (use_avx2()) return pairwise_avx2;
#endif
  return pairwise_portable;
}

}  // namespace tore_fast::cpu
