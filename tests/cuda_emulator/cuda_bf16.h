// bfloat16 of the emulator (see cuda_runtime_api.h): round to nearest even.
#pragma once
#include "cuda_runtime_api.h"

struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 v) { return __uint_as_float(unsigned(v.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float v) {
  unsigned u;
  std::memcpy(&u, &v, sizeof u);
  if (v != v) return {uint16_t(u >> 16 | 64)};
  return {uint16_t((u + 0x7fffu + (u >> 16 & 1)) >> 16)};
}
