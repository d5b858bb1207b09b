// Triangle set-up and the pixel test, one text for C++ and CUDA, so that both cover exactly the same pixels.
//
// Corners are snapped to 1/256 pixel and the edge functions are 64-bit integers: neighbouring triangles neither overlap
// nor leave holes (top-left rule), whatever the compiler. Depth and barycentric weights use separately rounded float32
// operations in one fixed order.
#pragma once
#include <cmath>
#include <cstdint>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#ifdef __CUDACC__
#define TORE_FAST_HD __host__ __device__ __forceinline__
#else
#define TORE_FAST_HD inline
#endif

namespace tore_fast::raster {

constexpr int kSubBits = 8;
constexpr int64_t kSub = int64_t(1) << kSubBits;
constexpr float kMaxCoordinate = 1048576.f;  // pixels: 2^20; the products below then stay under 2^62

// float32 operations that a compiler may not fuse into one rounding.
TORE_FAST_HD float mul(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
TORE_FAST_HD float add(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

TORE_FAST_HD int32_t to_int(float a) {  // nearest, ties to even
#if defined(__SSE2__) && !defined(__CUDA_ARCH__)
  return _mm_cvtss_si32(_mm_set_ss(a));  // lrintf is a library call here
#else
  return int32_t(rintf(a));
#endif
}

struct Corner {
  int32_t x, y;  // 1/256 pixel
  float z;
  bool usable;  // false for NaN, infinity and far-away corners
};

TORE_FAST_HD Corner snap(const float* v) {
  Corner c{0, 0, v[2], fabsf(v[0]) < kMaxCoordinate && fabsf(v[1]) < kMaxCoordinate && fabsf(v[2]) < 3.0e38f};
  if (c.usable) {
    c.x = to_int(mul(v[0], float(kSub)));
    c.y = to_int(mul(v[1], float(kSub)));
  }
  return c;
}

struct Triangle {
  Corner corner[3];
  int64_t area, turn;  // twice the area in 1/65536 square pixel, positive; turn = its sign before
  int x_min, x_max, y_min, y_max;  // pixels whose centre may lie inside, clipped to the image
};

TORE_FAST_HD int low(int a, int b) { return a < b ? a : b; }
TORE_FAST_HD int high(int a, int b) { return a > b ? a : b; }

// False when the triangle covers no pixel centre of rows [row_begin, row_end).
TORE_FAST_HD bool setup(const Corner& a, const Corner& b, const Corner& c, int width, int row_begin, int row_end,
                        Triangle& t) {
  if (!(a.usable && b.usable && c.usable)) return false;
  // pixel i has its centre at i + 1/2; >> rounds down for negative numbers too
  constexpr int kHalf = int(kSub / 2);
  t.y_min = high((low(low(a.y, b.y), c.y) + kHalf - 1) >> kSubBits, row_begin);
  t.y_max = low((high(high(a.y, b.y), c.y) - kHalf) >> kSubBits, row_end - 1);
  if (t.y_min > t.y_max) return false;
  t.x_min = high((low(low(a.x, b.x), c.x) + kHalf - 1) >> kSubBits, 0);
  t.x_max = low((high(high(a.x, b.x), c.x) - kHalf) >> kSubBits, width - 1);
  if (t.x_min > t.x_max) return false;
  t.area = int64_t(b.x - a.x) * (c.y - a.y) - int64_t(b.y - a.y) * (c.x - a.x);
  t.turn = t.area < 0 ? -1 : 1;
  t.area *= t.turn;
  t.corner[0] = a, t.corner[1] = b, t.corner[2] = c;
  return t.area != 0;
}

struct Edge {
  int64_t at_origin, step_x, step_y;  // value at the centre of pixel (0, 0), and per pixel
  int64_t limit;                      // 0 where a centre exactly on the edge belongs to the triangle, else 1
};

// The edge opposite to corner k; its function is >= limit inside. Top and left edges own the centres on them.
TORE_FAST_HD Edge edge(const Triangle& t, int k) {
  const Corner &a = t.corner[(k + 1) % 3], &b = t.corner[(k + 2) % 3];
  const int64_t dx = t.turn * (b.x - a.x), dy = t.turn * (b.y - a.y);
  return {dx * (kSub / 2 - a.y) - dy * (kSub / 2 - a.x), -dy * kSub, dx * kSub, dy < 0 || (dy == 0 && dx > 0) ? 0 : 1};
}

TORE_FAST_HD void weights(const int64_t* e, float inverse_area, float* w) {
  for (int k = 0; k < 3; ++k) w[k] = mul(float(e[k]), inverse_area);
}

TORE_FAST_HD float depth_at(const Triangle& t, const float* w) {
  return add(add(mul(w[0], t.corner[0].z), mul(w[1], t.corner[1].z)), mul(w[2], t.corner[2].z));
}

}  // namespace tore_fast::raster
