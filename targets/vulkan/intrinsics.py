"""Mathematical functions: what TIR's are in GLSL, one table. Halves are computed in float32: GLSL's
functions of halves need a feature of the device, and glslang forgets to declare it."""

from __future__ import annotations

# TIR's name -> GLSL's function, or one of HELPERS.
INTRINSICS = {
    "exp": "exp", "exp2": "exp2", "exp10": "tir_exp10", "log": "log", "log2": "log2", "log10": "tir_log10",
    "log1p": "tir_log1p", "sqrt": "sqrt", "rsqrt": "inversesqrt", "pow": "tir_pow", "fabs": "abs", "floor": "floor",
    "ceil": "ceil", "trunc": "trunc", "round": "roundEven", "nearbyint": "roundEven", "sin": "sin", "cos": "cos",
    "tan": "tan", "asin": "asin", "acos": "acos", "atan": "atan", "atan2": "atan", "sinh": "sinh", "cosh": "cosh",
    "tanh": "tir_tanh", "asinh": "asinh", "acosh": "acosh", "atanh": "atanh", "erf": "tir_erf",
    "sigmoid": "tir_sigmoid", "hypot": "tir_hypot", "copysign": "tir_copysign", "fmod": "tir_fmod",
    "isnan": "tir_isnan", "fma": "fma",
}
# Functions of integers; GLSL's give an int.
INTEGER_INTRINSICS = {"popcount": "bitCount", "clz": "tir_clz"}

# GLSL defines these for doubles too.
DOUBLE = ("sqrt", "rsqrt", "fabs", "floor", "ceil", "trunc", "nearbyint", "fma")

_DIVISIONS = """
{t} tir_truncmod({t} a, {t} b) {{ return a - a / b * b; }}
{t} tir_floordiv({t} a, {t} b) {{ {t} q = a / b, r = a - q * b; return r != 0 && (r < 0) != (b < 0) ? q - 1 : q; }}
{t} tir_floormod({t} a, {t} b) {{ {t} r = a - a / b * b; return r != 0 && (r < 0) != (b < 0) ? r + b : r; }}"""

# What GLSL lacks or leaves open, by name. Its % is undefined for negative operands.
HELPERS = {
    "tir_divisions": _DIVISIONS.format(t="int").lstrip(),
    "tir_divisions_64": _DIVISIONS.format(t="int64_t").lstrip(),
    "tir_exp10": "float tir_exp10(float x) { return exp2(x * 3.3219280948873623); }",
    "tir_log10": "float tir_log10(float x) { return log2(x) * 0.30102999566398120; }",
    # Near 1 drivers' log errs by 2^-21: too much for results near 0.
    "tir_log1p": """float tir_log1p(float x) {
  return abs(x) < 0.01 ? x * (1.0 - x * (0.5 - x * (0.33333333 - x * 0.25))) : log(1.0 + x);
}""",
    "tir_pow": """float tir_pow(float x, float y) {
  float r = y == 0.0 ? 1.0 : pow(abs(x), y);
  if (x >= 0.0 || y != trunc(y)) return x < 0.0 ? uintBitsToFloat(0x7fc00000u) : r;
  return fract(y * 0.5) == 0.0 ? r : -r;
}""",
    # The rational approximations of Eigen (and so of XLA), on the intervals outside of which the results are +-1 in
    # float32; GLSL's tanh may be a quotient of exponentials that overflow. Largest errors, against float64:
    # tests/targets/vulkan.
    "tir_tanh": """float tir_tanh(float x) {
  if (abs(x) < 0.0004) return x;
  float c = clamp(x, -7.90531110763549805, 7.90531110763549805), s = c * c;
  float p = fma(fma(fma(fma(fma(fma(-2.76076847742355e-16, s, 2.00018790482477e-13), s, -8.60467152213735e-11), s,
                                5.12229709037114e-08), s, 1.48572235717979e-05), s, 6.37261928875436e-04), s,
                4.89352455891786e-03);
  float q = fma(fma(fma(1.19825839466702e-06, s, 1.18534705686654e-04), s, 2.26843463243900e-03), s,
                4.89352518554385e-03);
  return c * p / q;
}""",
    "tir_erf": """float tir_erf(float x) {
  float c = clamp(x, -4.0, 4.0), s = c * c;
  float p = fma(fma(fma(fma(fma(fma(-2.72614225801306e-10, s, 2.77068142495902e-08), s, -2.10102402082508e-06), s,
                                -5.69250639462346e-05), s, -7.34990630326855e-04), s, -2.95459980854025e-03), s,
                -1.60960333262415e-02);
  float q = fma(fma(fma(fma(-1.45660718464996e-05, s, -2.13374055278905e-04), s, -1.68282697438203e-03), s,
                    -7.37332916720468e-03), s, -1.42647390514189e-02);
  return c * p / q;
}""",
    "tir_sigmoid": "float tir_sigmoid(float x) { return 1.0 / (1.0 + exp(-x)); }",
    "tir_hypot": "float tir_hypot(float x, float y) { return length(vec2(x, y)); }",
    "tir_copysign": """float tir_copysign(float x, float y) {
  return uintBitsToFloat(floatBitsToUint(x) & 0x7fffffffu | floatBitsToUint(y) & 0x80000000u);
}""",
    "tir_fmod": "float tir_fmod(float x, float y) { return x - y * trunc(x / y); }",
    # By its bits: drivers may assume that there are no NaNs.
    "tir_isnan": "bool tir_isnan(float x) { return (floatBitsToUint(x) & 0x7fffffffu) > 0x7f800000u; }",
    "tir_clz": "int tir_clz(uint x) { return 31 - findMSB(x); }",
}
