// The 8 x 8 transpose in registers, of the AVX2 builds alone. (Not in simd.h: that is for the portable files, and these builds
// must not bring their own copy of its functions.)
#pragma once
#if defined(__AVX2__)
#include <immintrin.h>

#include <cstdint>

namespace tore_fast::cpu {
namespace {

// out[c * ld + i] = row[i][c]; the rows are used up.
inline __attribute__((always_inline)) void transpose8(__m256 (&row)[8], float* out, int64_t ld) {
  __m256 t[8];
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(row[2 * i], row[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(row[2 * i], row[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    row[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    row[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xEE);
    row[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    row[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xEE);
  }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(out + i * ld, _mm256_permute2f128_ps(row[i], row[i + 4], 0x20));
    _mm256_storeu_ps(out + (i + 4) * ld, _mm256_permute2f128_ps(row[i], row[i + 4], 0x31));
  }
}

}  // namespace
}  // namespace tore_fast::cpu
#endif
