"""Every construct of an expression, scalar and in vectors, against this processor: equal bits."""

import numpy as np
import pytest
from tvm import tirx
from tvm.tirx import Select, all, any, const, if_then_else, max, min, reinterpret
from tvm_ffi import structural_map
from vulkan_harness import SIZE, Case, compare, elementwise, library, on_device

from targets.vulkan import module

INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")
FLOATS = ("float32", "float16")
DTYPES = (*INTEGERS, *FLOATS, "bool")
LANES = (2, 4, 8, 16)

# Name -> types, function of two numbers, type of the result ("": of the operands).
BINARY = {
    "add": (INTEGERS + FLOATS, lambda x, y: x + y, ""), "sub": (INTEGERS + FLOATS, lambda x, y: x - y, ""),
    "mul": (INTEGERS + FLOATS, lambda x, y: x * y, ""),
    "truncdiv": (("int8", "int32", "int64", "uint8", "uint32"), tirx.truncdiv, ""),
    "truncmod": (("int8", "int32", "int64", "uint32"), tirx.truncmod, ""),
    "floordiv": (("int8", "int16", "int32", "int64", "uint32"), tirx.floordiv, ""),
    "floormod": (("int8", "int16", "int32", "int64", "uint32"), tirx.floormod, ""),
    "min": (INTEGERS + FLOATS, min, ""), "max": (INTEGERS + FLOATS, max, ""),
    "and": (INTEGERS, tirx.bitwise_and, ""), "or": (("int32", "uint8"), tirx.bitwise_or, ""),
    "xor": (("int32", "uint16"), tirx.bitwise_xor, ""),
    "not": (("int32", "uint8"), lambda x, y: tirx.bitwise_not(x), ""),
    "less": (("int8", "uint32", "int64", *FLOATS), lambda x, y: x < y, "bool"),
    "at_least": (("int32", "uint16", "float32"), lambda x, y: x >= y, "bool"),
    "not_equal": (("int16", "float32"), lambda x, y: x != y, "bool"),
    "both": (("bool",), lambda x, y: all(x, tirx.Not(y)), ""), "either": (("bool",), lambda x, y: any(x, y), ""),
    "select": (("int8", *FLOATS), lambda x, y: Select(x < y, x, y + x), ""),
    "copy": (DTYPES, lambda x, y: x, ""),
}


def _float_bits(x):
    """A pattern of 32 bits as that of a number that is neither tiny nor infinite."""
    return tirx.bitwise_or(tirx.bitwise_and(x, const(0xBF7FFFFF, "uint32")), const(0x10000000, "uint32"))


def _half_bits(x):
    return tirx.bitwise_or(tirx.bitwise_and(x, const(0xBBFF, "uint16")), const(0x1000, "uint16"))


# Name -> type, function of two arrays and the index, type of the result.
OTHERS = {
    "division_by_constants": ("int32", lambda a, b, i: tirx.floordiv(a(i), const(-7, "int32")) * 3
                              + tirx.floormod(a(i), const(8, "int32")) + tirx.truncmod(a(i), const(-5, "int32")),
                              "int32"),
    "shift_of_signed": ("int32", lambda a, b, i: tirx.shift_right(a(i), const(3, "int32")), "int32"),
    "shifts": ("uint32", lambda a, b, i: tirx.shift_left(a(i), const(5, "uint32")) + tirx.shift_right(
        a(i), tirx.bitwise_and(b(i), const(31, "uint32"))), "uint32"),
    "popcount": ("uint32", lambda a, b, i: tirx.popcount(a(i)), "uint32"),
    "popcount_of_signed": ("int32", lambda a, b, i: tirx.popcount(a(i)), "int32"),
    "clz": ("int32", lambda a, b, i: tirx.clz(max(a(i), const(1, "int32"))), "int32"),
    # What is not chosen is not read: here it lies far outside of the array.
    "if_then_else": ("float32", lambda a, b, i: if_then_else(i < SIZE - 50, a(if_then_else(
        i < SIZE - 50, i, i + (1 << 29))), const(-1, "float32")), "float32"),
    "gather": ("int32", lambda a, b, i: a(tirx.floormod(b(i), SIZE)), "int32"),
    "gather_by_int64": ("int64", lambda a, b, i: a(tirx.floormod(b(i), const(SIZE, "int64"))), "int64"),
    "reverse": ("float32", lambda a, b, i: a(SIZE - 1 - i), "float32"),
    "neighbours": ("int8", lambda a, b, i: a(tirx.floormod(i + 1, SIZE)) - a(i), "int8"),
    "index": ("int32", lambda a, b, i: a(i) * 2 + i, "int32"),
    "broadcast": ("float32", lambda a, b, i: a(tirx.floordiv(i, 16)) * b(i), "float32"),
    "bits_of_float": ("float32", lambda a, b, i: reinterpret("int32", a(i)), "int32"),
    "float_of_bits": ("uint32", lambda a, b, i: reinterpret("float32", _float_bits(a(i))), "float32"),
    "bits_of_half": ("float16", lambda a, b, i: reinterpret("uint16", a(i)), "uint16"),
    "half_of_bits": ("uint16", lambda a, b, i: reinterpret("float16", _half_bits(a(i))), "float16"),
    "float_of_half_of_bits": ("uint16", lambda a, b, i: reinterpret("float16", _half_bits(a(i))).astype("float32"),
                              "float32"),
    "sign_of_byte": ("int8", lambda a, b, i: reinterpret("uint8", a(i)), "uint8"),
    "constants": ("float32", lambda a, b, i: Select(a(i) < const(0, "float32"), const(0.1, "float32"), const(
        1e-38, "float32")) * const(-3e38, "float32"), "float32"),
    "half_constants": ("float16", lambda a, b, i: Select(a(i) < const(0, "float16"), const(0.1, "float16"), const(
        -65504, "float16")), "float16"),
    "lowest_int": ("int32", lambda a, b, i: Select(a(i) < b(i), a(i), const(-2**31, "int32")), "int32"),
    "lowest_byte": ("int8", lambda a, b, i: Select(a(i) < b(i), a(i), const(-128, "int8")), "int8"),
    "infinity": ("float32", lambda a, b, i: max(a(i), const(float("-inf"), "float32")), "float32"),
    "isnan": ("float32", lambda a, b, i: tirx.isnan(a(i) + Select(a(i) < const(0, "float32"), const(
        float("nan"), "float32"), const(0, "float32"))), "bool"),
}


def cases():
    """All, scalar; and every fourth in vectors of one of LANES."""
    found = [Case(name, dtype, lambda a, b, i, function=function: function(a(i), b(i)), result or dtype)
             for name, (dtypes, function, result) in BINARY.items() for dtype in dtypes]
    found += [Case(f"cast to {target}", source, lambda a, b, i, target=target: a(i).astype(target), target)
              for source in DTYPES for target in DTYPES if source != target
              and not (source in FLOATS and target.startswith("uint"))]  # of negative numbers: undefined
    found += [Case(name, dtype, compute, result) for name, (dtype, compute, result) in OTHERS.items()]
    return found + [Case(case.name, case.dtype, case.compute, case.result, LANES[i % len(LANES)])
                    for i, case in enumerate(found[::4])]


def numbers(name, dtype):
    """SIZE numbers, small and large; "b", by which is divided, has neither zeros nor -1."""
    rng = np.random.default_rng(ord(name))
    if dtype == "bool":
        return rng.integers(0, 2, SIZE).astype(bool)
    if dtype in FLOATS:
        values = (rng.standard_normal(SIZE) * 3).astype(dtype)
        values[:8] = [0, -0.0, 0.5, 1.5, 2.5, -0.5, -1.5, 1]
        return values
    info = np.iinfo(dtype)
    small = rng.integers(np.maximum(-20, info.min), 20, SIZE).astype(dtype)
    values = np.where(rng.integers(0, 2, SIZE) == 0, rng.integers(info.min, info.max, SIZE, dtype, True), small)
    return np.where((values == 0) | (values == -1), np.asarray(3, dtype), values) if name == "b" else values


@pytest.mark.parametrize("dtype", DTYPES)
def test_constructs(dtype, tmp_path):
    assert not compare({dtype: [case for case in cases() if case.dtype == dtype]}, tmp_path, numbers)


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64"])
def test_floor_division_that_tvm_leaves_to_us(dtype, tmp_path, monkeypatch):
    """It makes truncated division of what kernels ask for, yet what we simplify ourselves may bring floor division."""
    generate, floors = module.generate, ((tirx.Div, lambda expr: tirx.FloorDiv(expr.a, expr.b)),
                                         (tirx.Mod, lambda expr: tirx.FloorMod(expr.a, expr.b)))
    monkeypatch.setattr(module, "generate", lambda name, func: generate(
        name, func.with_body(structural_map(func.body, floors))))
    cases = [Case(name, dtype, lambda a, b, i, function=function: function(a(i), b(i)), dtype, lanes=16)
             for name, function in (("quotient", tirx.truncdiv), ("remainder", tirx.truncmod))]
    kernels = library({dtype: elementwise(cases, on_device=True)}, tmp_path)
    a, b = (numbers(name, dtype) for name in "ab")
    found = on_device(kernels[dtype], [a, b, np.zeros((2, SIZE), dtype)])[2]
    np.testing.assert_array_equal(found, [a // b, a % b])
