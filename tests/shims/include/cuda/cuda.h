// CUDA C++ on the processor: what TVM's text and our kernels use of it.
#pragma once

#include <sys/types.h>  // uint, before the text makes a macro of it

#include "../group.h"

#define __global__
#define __forceinline__ inline
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#define __shared__ static SHIM_SHARED

#define __syncthreads shim::Barrier

#define SHIM_MAKE(name)                                                                          \
  template <class... Values>                                                                     \
  name##2 make_##name##2(Values... values) { return name##2(values...); }                        \
  template <class... Values>                                                                     \
  name##4 make_##name##4(Values... values) { return name##4(values...); }
SHIM_MAKE(float)
SHIM_MAKE(char)
SHIM_MAKE(uchar)
SHIM_MAKE(short)
SHIM_MAKE(ushort)
SHIM_MAKE(int)
SHIM_MAKE(uint)

template <class A, class B, class = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>>>
auto max(A a, B b) {
  if constexpr (std::is_floating_point_v<A> || std::is_floating_point_v<B>) return std::fmax(a, b);
  else return static_cast<std::common_type_t<A, B>>(a) > static_cast<std::common_type_t<A, B>>(b) ? a : b;
}
template <class A, class B, class = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>>>
auto min(A a, B b) {
  if constexpr (std::is_floating_point_v<A> || std::is_floating_point_v<B>) return std::fmin(a, b);
  else return static_cast<std::common_type_t<A, B>>(a) < static_cast<std::common_type_t<A, B>>(b) ? a : b;
}

inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
