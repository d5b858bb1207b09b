#include "bipartite_match_kernel.h"

namespace tore_fast::cpu {

void bipartite_match_avx2(const BipartiteMatchParams& p, int64_t begin, int64_t end, float* scratch) {
  for (int64_t i = begin; i < end; ++i) match_item(p, i, scratch);
}

}  // namespace tore_fast::cpu
