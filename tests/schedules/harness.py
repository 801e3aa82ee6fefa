"""Compiles one kernel and calls it between guard regions."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import tvm
from machine import few_token_tiles

from blockffn_mlc.target import Target
from runtime_py.devices import Device, find_device
from runtime_py.host import missing_flags
from runtime_py.selftest import memory
from schedules import activations, builder, cpu, q4
from schedules.cpu import vector
from schedules.layout import FLOAT_FORMATS, Q4_FORMATS, pack_rows
from schedules.tiles import CPU_TILES
from targets.cpu import cpu_target

# A processor for each row of the tile table; the row of this machine is tested with its own.
CPU_NAMES = {
    "x86_64": {"avx512vnni": "cascadelake", "avxvnni": "alderlake", "avx512": "skylake-avx512", "avx2": "haswell",
               "sse": "x86-64-v2"},
}.get(platform.machine(), {"dotprod": "neoverse-n1", "neon": "generic"})
FAMILIES = [name for name in CPU_NAMES if not CPU_TILES[name].dot]
DOT_FAMILIES = [name for name in CPU_NAMES if CPU_TILES[name].dot]
CODED = [mode for mode in activations.ACTIVATIONS if mode != "f32"]
DTYPES = ("float32", "float16")
TOKENS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 130)
MAX_TOKENS = TOKENS[-1]
EXACT = 1e-12  # NMSE of float32 arithmetic against float64


class Kind(NamedTuple):
    """What a kernel with a matrix is compiled for."""

    target: Target
    weight_format: str
    activations: str


# Where bytes can be multiplied, kernels for float32 activations are those of the row without.
KINDS = ([(family, weight_format, "f32") for family in FAMILIES for weight_format in cpu.FORMATS]
         + [(family, weight_format, mode) for family in DOT_FAMILIES for weight_format in Q4_FORMATS
            for mode in CODED])


@cache
def family_target(family: str) -> Target:
    """The target of a row of the tile table; skips where this machine cannot run it."""
    native = cpu_target()
    plain = replace(native.tiles, dot="", coded_token_tiles=())
    if CPU_TILES[family] in (native.tiles, plain):
        return native
    missing = missing_flags(family)
    if missing:
        pytest.skip(f"{family}: this machine lacks {', '.join(sorted(missing))}")
    return cpu_target(CPU_NAMES[family])


def kind_of(family: str, weight_format: str, mode: str) -> Kind:
    """As ``Kind``, by the name of a row of the tile table."""
    return Kind(few_token_tiles(family_target(family)), weight_format, mode)


def module_of(func: tvm.tirx.PrimFunc) -> tvm.IRModule:
    return tvm.IRModule({"main": func.with_attr("global_symbol", "main")})


@cache
def compiled(func: tvm.tirx.PrimFunc, tvm_target: tvm.target.Target) -> Callable:
    return tvm.compile(module_of(func), tvm_target).jit()["main"]


class Out:
    """A poisoned output. ``partial``: the caller checks what was left untouched."""

    def __init__(self, shape: Sequence[int], dtype: str = "float32", partial: bool = False) -> None:
        self.shape, self.dtype, self.partial = tuple(shape), dtype, partial

    def unwritten(self) -> np.ndarray:
        """What it holds at first."""
        return memory.poisoned(self.shape, self.dtype)

    @staticmethod
    def poison(dtype: str) -> np.uint32:
        """Four bytes of an output that was never written: NaN, or a huge integer."""
        return np.uint32(0x01010101 * memory.poison(dtype))


class InOut:
    """A tensor that the kernel changes in place."""

    def __init__(self, value: np.ndarray) -> None:
        self.value = value


def run(func: tvm.tirx.PrimFunc, target, *args) -> np.ndarray | list[np.ndarray]:
    """Call a kernel. ``args``: arrays (inputs), ints (scalars), Out, InOut. Returns what it wrote (one array, or a
    list) after checking that guards and inputs are as before and that outputs are fully written."""
    return call_guarded(compiled(func, target.tvm_target), find_device("cpu"), args)


def call_guarded(function: Callable, device: Device, args: Sequence) -> np.ndarray | list[np.ndarray]:
    """``run`` of a compiled kernel on a device."""
    guarded: list[tuple[object, memory.Guarded]] = []
    values = []
    for arg in args:
        if isinstance(arg, int):
            values.append(arg)
            continue
        content = arg.value if isinstance(arg, InOut) else arg
        guarded.append((arg, memory.Guarded(device, arg.unwritten() if isinstance(arg, Out) else content)))
        values.append(guarded[-1][1].tensor)
    function(*values)
    written = []
    for arg, tensor in guarded:
        found, intact = tensor.read()
        assert intact, "written outside of the tensor"
        if isinstance(arg, Out):
            unwritten = memory.bits_of(found) == memory.bits_of(arg.unwritten())
            assert arg.partial or not unwritten.any(), "output not fully written"
        elif not isinstance(arg, InOut):
            assert not tensor.changed(), "input modified"
            continue
        written.append(found)
    return written[0] if len(written) == 1 else written


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def nmse(actual: np.ndarray, expected: np.ndarray) -> float:
    """sum (actual-expected)^2 / sum expected^2; NaN anywhere gives NaN, which no bound admits."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    error, norm = ((actual - expected) ** 2).sum(), (expected**2).sum()
    return error / norm if norm else error


def check_rows(kernel: Callable[[int], np.ndarray], expected: np.ndarray, tolerance: float = EXACT) -> None:
    """``kernel(n)`` computes the first n rows of ``expected``, and a row has the same bits whatever n."""
    rows = kernel(MAX_TOKENS)
    assert nmse(rows, expected) <= tolerance
    for n in TOKENS:
        assert same_bits(kernel(n), rows[:n]), f"{n} tokens differ from {MAX_TOKENS}"


def normal(rng: np.random.Generator, *shape: int, dtype: str = "float32") -> np.ndarray:
    """Standard normal numbers rounded to ``dtype``."""
    return rng.standard_normal(shape).astype(dtype)


def stored_matrix(rng: np.random.Generator, weight_format: str, tile: int,
                  *shape: int) -> tuple[np.ndarray, np.ndarray]:
    """A random matrix [..., out, in]: the values that its format can hold, and as stored in that format."""
    if weight_format in FLOAT_FORMATS:
        weight = normal(rng, *shape, dtype=weight_format)
        return weight, pack_rows(weight, tile, weight_format)
    codes, scales = q4.quantize(normal(rng, *shape), weight_format)
    return q4.dequantize(codes, scales), q4.pack(codes, scales)


def handed_on(x: np.ndarray, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """Activations as kernels hand them on, and the values that they stand for."""
    records = activations.encode(x, mode)
    return records, activations.decode(records, mode, x.shape[-1])


def out_rows(mode: str, *shape: int, partial: bool = False) -> Out:
    """An output for activations [..., width]."""
    return Out(*activations.activation_shape(mode, shape), partial=partial)


def elementwise(target: Target, count: int, function: Callable) -> tvm.tirx.PrimFunc:
    """A kernel y[i] = function(x[i], lanes) over ``count`` floats."""
    with builder.kernel(__name__) as k:
        x, y = k.tensor((count,)), k.tensor((count,))
        vector.for_lanes(count, target.tiles.lanes, lambda i, lanes: vector.store(
            y, function(vector.load(x, i, lanes=lanes), lanes), i, lanes=lanes))
    return k.func


def poison(packed: np.ndarray, index: object) -> None:
    """Make the weights at ``index`` NaN, in any format."""
    packed[index] = np.nan if packed.dtype.kind == "f" else 0xFFFDFFFD  # NaN as a scale, yet no poison of outputs


def gappy_scores(rng: np.random.Generator, tokens: int, experts: int, share: float) -> np.ndarray:
    """Router scores [tokens, experts], about ``share`` of them active, of either sign."""
    scores = rng.standard_normal((tokens, experts)).astype("float32")
    scores[rng.random(scores.shape) >= share] = 0.0
    return scores
