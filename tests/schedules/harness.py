"""Compiles one kernel and calls it between guard regions."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm.target import codegen

from schedules import cpu, q4
from schedules.layout import FLOAT_FORMATS, pack_rows
from schedules.tiles import CPU_TILES
from targets.cpu import cpu_target

# A processor for each row of the tile table; the row of this machine is tested with its own.
CPU_NAMES = {"x86_64": {"avx512": "skylake-avx512", "avx2": "haswell", "sse": "x86-64-v2"},
             "aarch64": {"neon": "generic"}}
FAMILIES = list(CPU_NAMES.get(platform.machine(), {"native": "native"}))
DTYPES = ("float32", "float16")
WEIGHT_FORMATS = cpu.FORMATS
TOKENS = (1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 63, 64, 65, 130)
MAX_TOKENS = TOKENS[-1]
GUARD = 256  # bytes on either side of a tensor
EXACT = 1e-12  # NMSE of float32 arithmetic against float64


@cache
def family_target(family: str):
    """The target of a row of the tile table; skips where this machine cannot run it."""
    native = cpu_target()
    if native.tiles == CPU_TILES.get(family, native.tiles):
        return native
    target = cpu_target(CPU_NAMES[platform.machine()][family])
    missing = _INSTRUCTIONS & (_features(target) - _features(native))
    if missing:
        pytest.skip(f"{family}: this machine lacks {', '.join(sorted(missing))}")
    return target


# The other features that LLVM lists for a processor are tuning flags.
_INSTRUCTIONS = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd", "avx2", "fma", "f16c", "sse4.2"}


def _features(target) -> set[str]:
    return {str(feature) for feature in codegen.llvm_get_cpu_features(target.tvm_target)}


def module_of(func: tvm.tirx.PrimFunc) -> tvm.IRModule:
    return tvm.IRModule({"main": func.with_attr("global_symbol", "main")})


@cache
def compiled(func: tvm.tirx.PrimFunc, tvm_target: tvm.target.Target) -> Callable:
    return tvm.compile(module_of(func), tvm_target).jit()["main"]


class Out:
    """A poisoned output. ``partial``: the caller checks what was left untouched."""

    def __init__(self, shape: Sequence[int], dtype: str = "float32", partial: bool = False) -> None:
        self.shape, self.dtype, self.partial = tuple(shape), dtype, partial


class InOut:
    """A tensor that the kernel changes in place."""

    def __init__(self, value: np.ndarray) -> None:
        self.value = value


class Guarded:
    """A tensor in the middle of poisoned memory, at a multiple of 64 bytes: floats are NaN, integers huge."""

    def __init__(self, shape: Sequence[int], dtype: str) -> None:
        dtype = np.dtype(dtype)
        nbytes = int(np.prod(shape)) * dtype.itemsize
        self._poison = 0xFF if dtype.kind == "f" else 0x5A
        memory = np.full(2 * GUARD + nbytes + 64, self._poison, np.uint8)
        start = GUARD + -(memory.ctypes.data + GUARD) % 64
        self._before, self._after = memory[:start], memory[start + nbytes:]
        self.array = memory[start:start + nbytes].view(dtype).reshape(shape)

    def tensor(self) -> tvm_ffi.Tensor:
        return tvm_ffi.from_dlpack(self.array, require_alignment=64, require_contiguous=True)

    def untouched(self) -> np.ndarray:
        """bool: elements that still hold the poison."""
        size = self.array.dtype.itemsize
        raw = np.ascontiguousarray(self.array).view(np.uint8).reshape(*self.array.shape, size)
        return (raw == self._poison).all(-1)

    def check_guards(self) -> None:
        for guard in (self._before, self._after):
            assert (guard == self._poison).all(), "written outside of the tensor"


def run(func: tvm.tirx.PrimFunc, target, *args) -> np.ndarray | list[np.ndarray]:
    """Call a kernel. ``args``: arrays (inputs), ints (scalars), Out, InOut. Returns what it wrote (one array, or a
    list) after checking that guards and inputs are as before and that outputs are fully written."""
    guarded: list[tuple[object, Guarded]] = []
    values = []
    for arg in args:
        if isinstance(arg, int):
            values.append(arg)
            continue
        source = arg.value if isinstance(arg, InOut) else arg
        tensor = Guarded(source.shape, source.dtype)
        if not isinstance(arg, Out):
            tensor.array[...] = source
        guarded.append((arg, tensor))
        values.append(tensor.tensor())
    compiled(func, target.tvm_target)(*values)
    written = []
    for arg, tensor in guarded:
        tensor.check_guards()
        if isinstance(arg, Out):
            assert arg.partial or not tensor.untouched().any(), "output not fully written"
        elif not isinstance(arg, InOut):
            assert same_bits(tensor.array, arg), "input modified"
            continue
        written.append(tensor.array)
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


def poison(packed: np.ndarray, index: object) -> None:
    """Make the weights at ``index`` NaN, in any format."""
    packed[index] = np.nan if packed.dtype.kind == "f" else 0xFFFDFFFD  # NaN as a scale, yet no poison of outputs


def gappy_scores(rng: np.random.Generator, tokens: int, experts: int, share: float) -> np.ndarray:
    """Router scores [tokens, experts], about ``share`` of them active, of either sign."""
    scores = rng.standard_normal((tokens, experts)).astype("float32")
    scores[rng.random(scores.shape) >= share] = 0.0
    return scores
