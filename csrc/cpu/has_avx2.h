// Whether the *_avx2.cpp builds may run on this processor.
#pragma once

namespace tore_fast::cpu {

#if defined(__x86_64__) || defined(_M_X64)
inline bool has_avx2() {
  static const bool yes = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return yes;
}
#define TORE_FAST_AVX2(call) \
  if (has_avx2()) return call
#else
#define TORE_FAST_AVX2(call)
#endif

}  // namespace tore_fast::cpu
