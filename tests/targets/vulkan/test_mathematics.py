"""Mathematical functions on a Vulkan device against float64."""

import math

import numpy as np
import pytest
from tvm import tirx
from tvm.script.ir_builder import tirx as T
from vulkan_harness import library, on_device

from schedules.builder import kernel
from schedules.gpu.grid import launch

GROUPS, ITEMS = 32, 128
SIZE = GROUPS * ITEMS
WIDE, POSITIVE, MODERATE, SMALL = (-80, 80), (1e-6, 1e6), (-9, 9), (-3, 3)
_erf = np.vectorize(math.erf)


def _fma(x):
    return tirx.call_intrin(x.ty.dtype, "tirx.fma", x, x, x)


def _const(value, x):
    return tirx.const(value, x.ty.dtype)


# TIR's function, numpy's, the interval, the largest error: relative, and absolute where results come near zero. Errors
# of the driver's own functions are as large as Vulkan allows (specification, "Precision of core SPIR-V instructions");
# of ours (tanh, erf, log1p) as measured here, with some room for other drivers' log and division.
FUNCTIONS = {
    "exp": (tirx.exp, np.exp, WIDE, 2e-5, 0), "exp2": (tirx.exp2, np.exp2, WIDE, 2e-5, 0),
    "exp10": (tirx.exp10, lambda x: 10.0**x, (-4, 4), 4e-5, 0),
    "log": (tirx.log, np.log, POSITIVE, 1e-6, 1e-6), "log2": (tirx.log2, np.log2, POSITIVE, 1e-6, 1e-6),
    "log10": (tirx.log10, np.log10, POSITIVE, 1e-6, 1e-6), "log1p": (tirx.log1p, np.log1p, (-0.9, 3), 5e-5, 0),
    "sqrt": (tirx.sqrt, np.sqrt, POSITIVE, 4e-7, 0),
    "rsqrt": (tirx.rsqrt, lambda x: 1 / np.sqrt(x), POSITIVE, 4e-7, 0),
    "tanh": (tirx.tanh, np.tanh, MODERATE, 5e-7, 0), "erf": (tirx.erf, _erf, (-5, 5), 5e-7, 0),
    "sigmoid": (tirx.sigmoid, lambda x: 1 / (1 + np.exp(-x)), WIDE, 2e-5, 0),
    "sin": (tirx.sin, np.sin, SMALL, 0, 6e-4), "cos": (tirx.cos, np.cos, SMALL, 0, 6e-4),
    "tan": (tirx.tan, np.tan, (-1, 1), 2e-3, 2e-3), "asin": (tirx.asin, np.arcsin, (-1, 1), 0, 1e-3),
    "acos": (tirx.acos, np.arccos, (-1, 1), 0, 1e-3), "atan": (tirx.atan, np.arctan, MODERATE, 5e-4, 0),
    "sinh": (tirx.sinh, np.sinh, MODERATE, 1e-5, 1e-6), "cosh": (tirx.cosh, np.cosh, MODERATE, 1e-5, 0),
    "asinh": (tirx.asinh, np.arcsinh, MODERATE, 1e-5, 1e-5), "acosh": (tirx.acosh, np.arccosh, (1.1, 50), 1e-5, 0),
    "atanh": (tirx.atanh, np.arctanh, (-0.9, 0.9), 1e-5, 1e-5),
    "cube": (lambda x: tirx.power(x, _const(3, x)), lambda x: x**3, MODERATE, 2e-5, 0),
    "power": (lambda x: tirx.power(x, _const(-1.5, x)), lambda x: x**-1.5, (1e-2, 1e2), 2e-5, 0),
    "fmod": (lambda x: tirx.fmod(x, _const(0.75, x)), lambda x: np.fmod(x, 0.75), MODERATE, 0, 0),
    "hypot": (lambda x: tirx.hypot(x, x + 1), lambda x: np.hypot(x, x + 1), MODERATE, 1e-6, 0),
    "atan2": (lambda x: tirx.atan2(x, x + 1), lambda x: np.arctan2(x, x + 1), SMALL, 0, 1e-3),
    "copysign": (lambda x: tirx.copysign(_const(2, x), x), lambda x: np.copysign(2, x), MODERATE, 0, 0),
    "fma": (_fma, lambda x: x * x + x, MODERATE, 1e-6, 1e-6),
    "quotient": (lambda x: x / (x * x + 1), lambda x: x / (x * x + 1), MODERATE, 1e-6, 0),
    "floor": (tirx.floor, np.floor, MODERATE, 0, 0), "ceil": (tirx.ceil, np.ceil, MODERATE, 0, 0),
    "trunc": (tirx.trunc, np.trunc, MODERATE, 0, 0), "round": (tirx.round, np.round, MODERATE, 0, 0),
    "nearbyint": (tirx.nearbyint, np.round, MODERATE, 0, 0), "abs": (tirx.abs, np.abs, MODERATE, 0, 0),
}
HALF_RANGE = (-10, 10)
HALF_ROUNDING = 2**-10
DTYPES = ("float32", "float16")


def functions_of(dtype):
    """One kernel: y[f, i] = f(x[f, i])."""
    with kernel(__name__, "int32") as k:
        x, y = (k.tensor((len(FUNCTIONS), SIZE), dtype) for _ in range(2))
        with launch((GROUPS,), (ITEMS,)) as ((group,), (item,)):
            i = group * ITEMS + item
            for row, (function, *_) in enumerate(FUNCTIONS.values()):
                T.buffer_store(y, function(x[row, i]), [row, i])
    return k.func


def inputs(interval, dtype):
    """Numbers of an interval, halves and zeros among them."""
    low, high = interval
    if dtype == "float16":
        low, high = max(low, HALF_RANGE[0]), min(high, HALF_RANGE[1])
    rng = np.random.default_rng(1)
    x = np.exp(rng.uniform(math.log(low), math.log(high), SIZE)) if low > 0 else rng.uniform(low, high, SIZE)
    x[:6] = np.clip([0, 0.5, 1.5, 2.5, -0.5, -2.5], low, high)
    return x.astype(dtype)


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """By dtype and function: x, y."""
    kernels = library({dtype: functions_of(dtype) for dtype in DTYPES}, tmp_path_factory.mktemp("mathematics"))
    results = {}
    for dtype in DTYPES:
        x = np.stack([inputs(interval, dtype) for _, _, interval, *_ in FUNCTIONS.values()])
        results[dtype] = dict(zip(FUNCTIONS, zip(*on_device(kernels[dtype], [x, np.zeros_like(x)]))))
    return results


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_error(name, dtype, computed):
    _, reference, _, relative, absolute = FUNCTIONS[name]
    if dtype == "float16":
        relative, absolute = relative + HALF_ROUNDING, absolute + HALF_ROUNDING
    x, found = (values.astype("float64") for values in computed[dtype][name])
    expected = reference(x)
    error, allowed = np.abs(found - expected), relative * np.abs(expected) + absolute
    worst = np.argmax(error - allowed)
    assert error[worst] <= allowed[worst], (x[worst], expected[worst], found[worst])
