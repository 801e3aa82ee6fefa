// Half precision.
#pragma once

#include "cuda.h"
#include "warp.h"

typedef half __half;
typedef shim::Vector<half, 2, 4> half2;
typedef half2 __half2;

inline float __half2float(half x) { return x; }
inline half __float2half(float x) { return x; }
inline half __float2half_rn(float x) { return x; }
inline bool __hgt(half a, half b) { return a > b; }
inline bool __hlt(half a, half b) { return a < b; }

#define alignas(bytes) __attribute__((aligned(bytes)))  // which, other than the keyword, may stand behind "static"
