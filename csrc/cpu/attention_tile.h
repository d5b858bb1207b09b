// Building blocks of the CPU attention kernels: a register-tiled product, a vector exponential, row packing.
// Written with GCC/Clang vector types, so the same text serves SSE, AVX2 and NEON: the including file's flags decide.
// No std containers in here: the linker could keep their AVX2 copies for everyone. Everything is file-local.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "transpose.h"

namespace tore_fast::cpu {
namespace {

#if defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif
typedef float vec __attribute__((vector_size(kWidth * 4)));
typedef int32_t ivec __attribute__((vector_size(kWidth * 4)));
typedef float vec_unaligned __attribute__((vector_size(kWidth * 4), aligned(4)));

constexpr int64_t kPad = 8;  // row lengths are padded to a multiple of this, whatever the vector width
constexpr float kInf = std::numeric_limits<float>::infinity();

inline vec load(const float* p) { return *reinterpret_cast<const vec_unaligned*>(p); }
inline void store(float* p, vec v) { *reinterpret_cast<vec_unaligned*>(p) = v; }
inline vec broadcast(float v) { return v - vec{}; }
inline vec vmax(vec a, vec b) { return a > b ? a : b; }
inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Sum and largest of the lanes, in three dependent steps instead of seven: rows of scores are only one to six vectors long
// after pruning, so these took a third of a softmax.
inline float hsum(vec v) {
#if defined(__AVX2__)
  const __m128 a = _mm_add_ps(_mm256_castps256_ps128(__m256(v)), _mm256_extractf128_ps(__m256(v), 1));
  const __m128 b = _mm_add_ps(a, _mm_movehl_ps(a, a));
  return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
#else
  return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}

// out[i] = factor * hsum(a_i), i < 4
inline void hsum4(vec a0, vec a1, vec a2, vec a3, float factor, float* out) {
#if defined(__AVX2__)
  const __m256 t = _mm256_hadd_ps(_mm256_hadd_ps(__m256(a0), __m256(a1)), _mm256_hadd_ps(__m256(a2), __m256(a3)));
  const __m128 s = _mm_add_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1));
  _mm_storeu_ps(out, _mm_mul_ps(s, _mm_set1_ps(factor)));
#else
  out[0] = factor * hsum(a0);
  out[1] = factor * hsum(a1);
  out[2] = factor * hsum(a2);
  out[3] = factor * hsum(a3);
#endif
}

inline float hmax(vec v) {
#if defined(__AVX2__)
  const __m128 a = _mm_max_ps(_mm256_castps256_ps128(__m256(v)), _mm256_extractf128_ps(__m256(v), 1));
  const __m128 b = _mm_max_ps(a, _mm_movehl_ps(a, a));
  return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
#endif
  float m = v[0];
  for (int i = 1; i < kWidth; ++i) m = v[i] > m ? v[i] : m;
  return m;
}

// e^x for x <= 88, relative error below 2e-7; 0 below -87 (also for -inf), NaN stays NaN.
inline vec vexp(vec x) {
  const vec low = broadcast(-87.f);
  const vec clamped = x < low ? low : x;
  const vec magic = broadcast(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer
  const vec shifted = clamped * 1.44269504088896341f + magic;
  const vec n = shifted - magic;
  // ln 2 in two parts, so that the remainder is exact
  const vec r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  ivec bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 127) << 23;  // 2^n: the low bits of `shifted` hold n
  vec power;
  std::memcpy(&power, &bits, sizeof power);
  return x < low ? vec{} : p * power;
}

// C[R x NV*kWidth] (+)= A B with A[m, k] at a[m * am + k * ak] and B[k] a row of vectors.
template <int R, int NV>
inline void product_tile(const float* a, int64_t am, int64_t ak, const float* b, int64_t ldb, float* c, int64_t ldc,
                         int64_t depth, bool accumulate) {
  vec acc[R][NV];
  for (int m = 0; m < R; ++m)
    for (int n = 0; n < NV; ++n) acc[m][n] = accumulate ? load(c + m * ldc + n * kWidth) : vec{};
  for (int64_t k = 0; k < depth; ++k) {
    vec row[NV];
    for (int n = 0; n < NV; ++n) row[n] = load(b + k * ldb + n * kWidth);
    for (int m = 0; m < R; ++m) {
      const vec x = broadcast(a[m * am + k * ak]);
      for (int n = 0; n < NV; ++n) acc[m][n] += x * row[n];
    }
  }
  for (int m = 0; m < R; ++m)
    for (int n = 0; n < NV; ++n) store(c + m * ldc + n * kWidth, acc[m][n]);
}

template <int NV>
inline void product_rows(int64_t rows, const float* a, int64_t am, int64_t ak, const float* b, int64_t ldb, float* c,
                         int64_t ldc, int64_t depth, bool accumulate) {
  int64_t m = 0;
  for (; m + 6 <= rows; m += 6) {
    product_tile<6, NV>(a + m * am, am, ak, b, ldb, c + m * ldc, ldc, depth, accumulate);
  }
  a += m * am;
  c += m * ldc;
  switch (rows - m) {
    case 5: return product_tile<5, NV>(a, am, ak, b, ldb, c, ldc, depth, accumulate);
    case 4: return product_tile<4, NV>(a, am, ak, b, ldb, c, ldc, depth, accumulate);
    case 3: return product_tile<3, NV>(a, am, ak, b, ldb, c, ldc, depth, accumulate);
    case 2: return product_tile<2, NV>(a, am, ak, b, ldb, c, ldc, depth, accumulate);
    case 1: return product_tile<1, NV>(a, am, ak, b, ldb, c, ldc, depth, accumulate);
    default: return;
  }
}

// C[rows x cols] (+)= A[rows x depth] B[depth x cols]; cols a multiple of 8. A may be transposed through its strides.
inline void product(int64_t rows, int64_t cols, int64_t depth, const float* a, int64_t am, int64_t ak, const float* b,
                    int64_t ldb, float* c, int64_t ldc, bool accumulate) {
  int64_t n = 0;
  for (; n + 2 * kWidth <= cols; n += 2 * kWidth) {
    product_rows<2>(rows, a, am, ak, b + n, ldb, c + n, ldc, depth, accumulate);
  }
  for (; n < cols; n += kWidth) product_rows<1>(rows, a, am, ak, b + n, ldb, c + n, ldc, depth, accumulate);
}

// out[d, j] = factor * x[j, d] for j < rows, 0 for the padding up to ld.
inline void pack_transposed(const float* x, int64_t stride, int64_t rows, int64_t dim, float factor, float* out,
                            int64_t ld) {
  int64_t j = 0;
#if defined(__AVX2__)
  for (; j + 8 <= rows; j += 8) {
    int64_t d = 0;
    for (; d + 8 <= dim; d += 8) {
      __m256 block[8];
      for (int i = 0; i < 8; ++i) {
        block[i] = _mm256_mul_ps(_mm256_set1_ps(factor), _mm256_loadu_ps(x + (j + i) * stride + d));
      }
      transpose8(block, out + d * ld + j, ld);
    }
    for (; d < dim; ++d)
      for (int64_t i = 0; i < 8; ++i) out[d * ld + j + i] = factor * x[(j + i) * stride + d];
  }
#endif
  for (int64_t d = 0; d < dim; ++d) {
    for (int64_t i = j; i < rows; ++i) out[d * ld + i] = factor * x[i * stride + d];
    for (int64_t i = rows; i < ld; ++i) out[d * ld + i] = 0.f;
  }
}

// A matrix of token rows as the kernels want it: row length padded to a multiple of 8.
struct Rows {
  const float* data;
  int64_t stride;
  const float* operator[](int64_t i) const { return data + i * stride; }
};

// The given rows themselves when their length needs no padding, else a zero-padded copy in `scratch`.
inline Rows padded_rows(const float* x, int64_t stride, int64_t rows, int64_t dim, int64_t padded, float* scratch) {
  if (dim == padded) return {x, stride};
  for (int64_t i = 0; i < rows; ++i) {
    std::memcpy(scratch + i * padded, x + i * stride, dim * sizeof(float));
    for (int64_t d = dim; d < padded; ++d) scratch[i * padded + d] = 0.f;
  }
  return {scratch, padded};
}

// The rows of one head next to each other, for kernels that read each of them many times: in [batch, token, head, dim] memory
// the rows of a head are a power of two apart and fall on a few cache sets (445 rows of 8 heads, D = 64: 1.2x slower). Copied
// unless they lie so already.
inline Rows own_rows(const float* x, int64_t stride, int64_t rows, int64_t dim, int64_t padded, float* scratch) {
  if (stride == padded && dim == padded) return {x, stride};
  if (dim != padded) return padded_rows(x, stride, rows, dim, padded, scratch);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t d = 0; d < dim; d += kWidth) store(scratch + i * dim + d, load(x + i * stride + d));
  return {scratch, dim};
}

// Where a result is accumulated: the output itself, or a padded buffer that finish() copies out.
struct OutRows {
  float* data;
  int64_t stride;
  float* operator[](int64_t i) const { return data + i * stride; }
};

inline OutRows padded_out(float* y, int64_t stride, int64_t dim, int64_t padded, float* scratch) {
  return dim == padded ? OutRows{y, stride} : OutRows{scratch, padded};
}

inline void finish(const OutRows& from, float* y, int64_t stride, int64_t rows, int64_t dim) {
  if (from.data == y) return;
  for (int64_t i = 0; i < rows; ++i) std::memcpy(y + i * stride, from[i], dim * sizeof(float));
}

inline void zero_rows(const OutRows& y, int64_t begin, int64_t end, int64_t dim) {
  for (int64_t i = begin; i < end; ++i) std::memset(y[i], 0, dim * sizeof(float));
}

// ln x for normal x > 0, relative error below 2e-7 (the polynomial of Cephes' logf).
inline vec vlog(vec x) {
  ivec bits;
  std::memcpy(&bits, &x, sizeof bits);
  const ivec exponent = (bits - 0x3f3504f3) >> 23;  // x = 2^exponent * m, m in [sqrt(1/2), sqrt(2))
  bits -= exponent << 23;
  vec m;
  std::memcpy(&m, &bits, sizeof m);
  const vec n = __builtin_convertvector(exponent, vec), r = m - 1.f, square = r * r;
  vec p = r * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * r + 1.1676998740e-1f;
  p = p * r - 1.2420140846e-1f;
  p = p * r + 1.4249322787e-1f;
  p = p * r - 1.6668057665e-1f;
  p = p * r + 2.0000714765e-1f;
  p = p * r - 2.4999993993e-1f;
  p = p * r + 3.3333331174e-1f;
  return n * 0.693359375f + (r + (p * r * square - n * 2.12194440e-4f - 0.5f * square));
}

// Softmax of rows one by one; their log-sum-exp is finished kWidth rows at a time.
struct RowLse {
  float* out;  // of row 0
  int64_t count = 0;
  vec top{}, sum{};

  void add(float row_top, float row_sum) {
    const int64_t lane = count++ % kWidth;
    top[lane] = row_top;
    sum[lane] = row_sum;
    if (lane == kWidth - 1) store(out + count - kWidth, top + vlog(sum));
  }
  void finish() {
    const int64_t left = count % kWidth, from = count - left;
    for (int64_t i = left; i < kWidth; ++i) sum[i] = 1.f;
    const vec last = top + vlog(sum);
    for (int64_t i = 0; i < left; ++i) out[from + i] = last[i];
  }
};

inline ivec lanes_from(int64_t first) {
  ivec v;
  for (int i = 0; i < kWidth; ++i) v[i] = int32_t(first) + i;
  return v;
}

// Turns the first `na` of NA vectors at a and the first `nb` of NB vectors at b into softmax weights, the others into 0. All
// stay in registers, and nothing is written before it is read: a row is short, so its latency is what costs.
template <int NA, int NB>
inline void softmax_short(float* a, int64_t na, float* b, int64_t nb, RowLse& lse) {
  vec x[NA + NB > 0 ? NA + NB : 1];
  vec top = broadcast(-kInf);
  for (int i = 0; i < NA + NB; ++i) {
    const bool first = i < NA;
    const int64_t at = (first ? i : i - NA) * kWidth;
    const ivec used = lanes_from(at) < (ivec{} + int32_t(first ? na : nb));
    x[i] = used ? load((first ? a : b) + at) : broadcast(-kInf);
    top = vmax(x[i], top);
  }
  const float m = hmax(top);
  const bool none = !(m > -kInf);
  const vec shift = broadcast(none ? 0.f : m);
  vec total{};
  for (int i = 0; i < NA + NB; ++i) total += x[i] = vexp(x[i] - shift);
  const float sum = none ? 1.f : hsum(total);
  const vec inverse = broadcast(1.f / sum);
  for (int i = 0; i < NA + NB; ++i) store(i < NA ? a + i * kWidth : b + (i - NA) * kWidth, x[i] * inverse);
  lse.add(none ? -kInf : m, sum);
}

// Turns n scores (n a multiple of kWidth, padding -inf) in two pieces into softmax weights.
inline void softmax_pair(float* a, int64_t na, float* b, int64_t nb, RowLse& lse) {
  vec top = broadcast(-kInf);
  for (int64_t i = 0; i < na; i += kWidth) top = vmax(top, load(a + i));
  for (int64_t i = 0; i < nb; i += kWidth) top = vmax(top, load(b + i));
  const float m = hmax(top);
  const bool none = !(m > -kInf);
  const vec shift = broadcast(none ? 0.f : m);
  vec total{};
  for (int64_t i = 0; i < na; i += kWidth) {
    const vec e = vexp(load(a + i) - shift);
    total += e;
    store(a + i, e);
  }
  for (int64_t i = 0; i < nb; i += kWidth) {
    const vec e = vexp(load(b + i) - shift);
    total += e;
    store(b + i, e);
  }
  const float sum = none ? 1.f : hsum(total);
  const vec inverse = broadcast(none ? 0.f : 1.f / sum);
  for (int64_t i = 0; i < na; i += kWidth) store(a + i, load(a + i) * inverse);
  for (int64_t i = 0; i < nb; i += kWidth) store(b + i, load(b + i) * inverse);
  lse.add(none ? -kInf : m, sum);
}

struct Scratch {
  float* next;
  float* take(int64_t n) {
    float* p = next;
    next += n;
    return p;
  }
};

}  // namespace
}  // namespace tore_fast::cpu
