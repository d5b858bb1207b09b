// Which of a kernel's builds this processor may run: TORE_FAST_SIMD(kernel, args...) returns from the calling function
// with kernel_avx2(args...), or falls through to the portable code below it. (16-wide AVX-512 builds of the attention
// kernels were tried on Zen 4 and gained nothing: its units are 256 bits wide.)
#pragma once
#include <cstdlib>
#include <cstring>

namespace tore_fast::cpu {

#if defined(__x86_64__) || defined(_M_X64)

// The environment variable TORE_FAST_SIMD=none turns the vector builds off (tests, comparisons).
inline bool use_avx2() {
  static const bool yes = [] {
    const char* wish = std::getenv("TORE_FAST_SIMD");
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && !(wish && !std::strcmp(wish, "none"));
  }();
  return yes;
}

#define TORE_FAST_SIMD(kernel, ...) \
  if (use_avx2()) return kernel##_avx2(__VA_ARGS__)
#else
#define TORE_FAST_SIMD(kernel, ...)
#endif

}  // namespace tore_fast::cpu
