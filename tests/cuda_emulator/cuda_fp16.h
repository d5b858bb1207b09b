// float16 of the emulator (see cuda_runtime_api.h).
#pragma once
#include "cuda_runtime_api.h"

struct __half {
  _Float16 value;
};
struct __half2 {
  __half x, y;
};
inline float __half2float(__half v) { return float(v.value); }
inline __half __float2half_rn(float v) { return {_Float16(v)}; }
inline float2 __half22float2(__half2 v) { return {float(v.x.value), float(v.y.value)}; }
