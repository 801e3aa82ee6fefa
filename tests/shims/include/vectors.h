// Vector and half-precision types, as CUDA and Metal name them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

typedef _Float16 half;

namespace shim {

template <class T, int N>
struct Elements;
template <class T>
struct Elements<T, 2> {
  T x, y;
};
template <class T>
struct Elements<T, 3> {
  T x, y, z;
};
template <class T>
struct Elements<T, 4> {
  T x, y, z, w;
};

template <class T, int N, size_t kAlignment>
struct alignas(kAlignment) Vector : Elements<T, N> {
  Vector() = default;
  explicit Vector(T value) {
    for (int i = 0; i < N; ++i) (*this)[i] = value;
  }
  template <class... Values, class = std::enable_if_t<sizeof...(Values) == N && (N > 1)>>
  Vector(Values... values) : Elements<T, N>{static_cast<T>(values)...} {}
  template <class From, size_t kOther>
  explicit Vector(const Vector<From, N, kOther>& from) {
    for (int i = 0; i < N; ++i) (*this)[i] = static_cast<T>(from[i]);
  }
  T& operator[](int i) { return reinterpret_cast<T*>(this)[i]; }
  const T& operator[](int i) const { return reinterpret_cast<const T*>(this)[i]; }

  // Element by element.
  template <class Operation>
  static Vector Each(const Vector& a, const Vector& b, Operation operation) {
    Vector result;
    for (int i = 0; i < N; ++i) result[i] = operation(a[i], b[i]);
    return result;
  }
  friend Vector operator+(const Vector& a, const Vector& b) { return Each(a, b, [](T x, T y) { return x + y; }); }
  friend Vector operator-(const Vector& a, const Vector& b) { return Each(a, b, [](T x, T y) { return x - y; }); }
  friend Vector operator*(const Vector& a, const Vector& b) { return Each(a, b, [](T x, T y) { return x * y; }); }
  friend Vector operator/(const Vector& a, const Vector& b) { return Each(a, b, [](T x, T y) { return x / y; }); }
  friend Vector operator&(const Vector& a, const Vector& b) { return Each(a, b, [](T x, T y) { return x & y; }); }
  friend Vector operator|(const Vector& a, const Vector& b) { return Each(a, b, [](T x, T y) { return x | y; }); }
  friend Vector operator^(const Vector& a, const Vector& b) { return Each(a, b, [](T x, T y) { return x ^ y; }); }
  friend Vector operator<<(const Vector& a, const Vector& b) { return Each(a, b, [](T x, T y) { return x << y; }); }
  friend Vector operator>>(const Vector& a, const Vector& b) { return Each(a, b, [](T x, T y) { return x >> y; }); }
};

}  // namespace shim

// Vectors of three have the alignment of one element in CUDA; nobody reads one from memory.
#define SHIM_VECTORS(T, name)                      \
  using name##2 = shim::Vector<T, 2, 2 * sizeof(T)>; \
  using name##3 = shim::Vector<T, 3, sizeof(T)>;     \
  using name##4 = shim::Vector<T, 4, 4 * sizeof(T)>;
SHIM_VECTORS(float, float)
SHIM_VECTORS(signed char, char)
SHIM_VECTORS(unsigned char, uchar)
SHIM_VECTORS(short, short)
SHIM_VECTORS(unsigned short, ushort)
SHIM_VECTORS(int, int)
SHIM_VECTORS(unsigned int, uint)
