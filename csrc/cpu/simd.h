// Which of a kernel's builds this processor may run: TORE_FAST_SIMD(kernel, args...) returns from the calling function
// with kernel_avx2(args...), or falls through to the portable code below it; TORE_FAST_SIMD_WIDE has a kernel_avx512 too.
// (16-wide builds of the attention kernels were tried on Zen 4 and gained nothing: its units are 256 bits wide.)
#pragma once
#include <cstdlib>
#include <cstring>

namespace tore_fast::cpu {

#if defined(__x86_64__) || defined(_M_X64)

// The environment variable TORE_FAST_SIMD=none turns the vector builds off, =avx2 the wider ones (tests, comparisons).
inline bool simd_wished(const char* unless) {
  const char* wish = std::getenv("TORE_FAST_SIMD");
  return !(wish && (!std::strcmp(wish, "none") || !std::strcmp(wish, unless)));
}

inline bool use_avx2() {
  static const bool yes = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && simd_wished("none");
  return yes;
}

inline bool use_avx512() {
  static const bool yes = use_avx2() && __builtin_cpu_supports("avx512f") && simd_wished("avx2");
  return yes;
}

inline const char* simd_name() { return use_avx512() ? "avx512" : use_avx2() ? "avx2" : "none"; }

#define TORE_FAST_SIMD(kernel, ...) \
  if (use_avx2()) return kernel##_avx2(__VA_ARGS__)
#define TORE_FAST_SIMD_WIDE(kernel, ...)                  \
  if (use_avx512()) return kernel##_avx512(__VA_ARGS__); \
  TORE_FAST_SIMD(kernel, __VA_ARGS__)
#else
inline const char* simd_name() { return "none"; }

#define TORE_FAST_SIMD(kernel, ...)
#define TORE_FAST_SIMD_WIDE(kernel, ...)
#endif

}  // namespace tore_fast::cpu
