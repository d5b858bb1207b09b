#include "linear_kernel.h"

namespace tore_fast::cpu {

void strassen_pack_avx512(const StrassenPack& p, int64_t begin, int64_t end, float* scratch) {
  for (int64_t i = begin; i < end; ++i) pack_product(p, i, scratch);
}

void strassen_linear_avx512(const StrassenLinear& p, int64_t begin, int64_t end, float* scratch) {
  linear_units(p, begin, end, scratch);
}

}  // namespace tore_fast::cpu
