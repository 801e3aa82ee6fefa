"""Vector building blocks of the CPU kernels, emitted straight into TIR.

Kernels are written with TVM's IR builder: plain Python composes the loop nest, so a register tile is
a Python loop. Results must not depend on how a kernel is tiled, hence every multiply-add is an
explicit ``fma`` and every reduction has one fixed order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import choose

Read = Callable[[Any, int], Any]  # (first column, lanes) -> the values there, as float32
_LINE_BYTES = 64
_READ, _TO_L2, _DATA = 0, 2, 1  # arguments of llvm.prefetch


def over_rows(n: Any, parallel_from: int, body: Callable[[Any], None]) -> None:
    """Run ``body(row)`` for n rows, in parallel only when there are enough of them."""

    def emit(loop: Callable[..., Any]) -> None:
        with loop(0, n) as row:
            body(row)

    choose(n < parallel_from, lambda: emit(T.serial), lambda: emit(T.parallel))


def over_token_tiles(count: Any, token_tiles: Sequence[int], emit: Callable[[list[Any]], None]) -> None:
    """Cut ``count`` rows into tiles and emit one variant per tile size: ``emit(rows)`` computes the rows with
    these indices together. The last rows take the smallest tile that holds them; where it is too large its last
    row is repeated, which computes and stores the same values again."""
    largest = token_tiles[-1]

    def by_size(first: Any, left: Any, sizes: Sequence[int]) -> None:
        def rows() -> None:
            emit([first] + [T.bind(first + T.min(T.int64(t), left - 1)) for t in range(1, sizes[0])])

        if len(sizes) == 1:
            rows()
        else:
            choose(left <= sizes[0], rows, lambda: by_size(first, left, sizes[1:]))

    with T.serial(0, T.floordiv(count + (largest - 1), largest)) as block:
        first = T.bind(block * largest)
        by_size(first, T.bind(T.min(count - first, T.int64(largest))), token_tiles)


def span(start: Any, lanes: int) -> Any:
    """Indices start .. start+lanes-1."""
    return start if lanes == 1 else T.ramp(start, 1, lanes)


def splat(value: Any, lanes: int) -> Any:
    """The same float (or expression) in every lane."""
    if isinstance(value, int | float):
        return const(value, lanes)
    return value if lanes == 1 else T.broadcast(value, lanes)


def const(value: float, lanes: int, dtype: str = "float32") -> Any:
    """A constant of ``dtype`` in every lane."""
    value = tvm.tirx.const(value, dtype)
    return value if lanes == 1 else T.broadcast(value, lanes)


def load(buffer: T.Buffer, *index: Any, lanes: int) -> Any:
    """``lanes`` consecutive elements from ``index``, as float32."""
    value = buffer[(*index[:-1], span(index[-1], lanes))]
    return value if buffer.dtype == "float32" else T.cast(value, vector("float32", lanes))


def dot(instruction: str, total: Any, a: Any, b: Any) -> Any:
    """total[v] + the sum over i of byte i of a[v] times byte i of b[v], by LLVM's ``instruction``: bytes of a from 0 to
    127, those of b signed."""
    lanes = tvm.DataType(str(total.ty.dtype)).lanes
    return T.call_llvm_pure_intrin(vector("int32", lanes), instruction, total,
                                   *(T.reinterpret(vector(dtype, 4 * lanes), words)
                                     for dtype, words in (("uint8", a), ("int8", b))))


def store(buffer: T.Buffer, value: Any, *index: Any, lanes: int) -> None:
    """Write ``lanes`` consecutive elements, rounded to the buffer's dtype."""
    if buffer.dtype != "float32":
        value = T.cast(value, vector(str(buffer.dtype), lanes))
    T.buffer_store(buffer, value, [*index[:-1], span(index[-1], lanes)])


def prefetch(buffer: T.Buffer, *index: Any, count: int) -> None:
    """Ask for ``count`` consecutive elements, for the second cache level: for streams whose next part lies where the
    processor's own prefetchers, which stop at every page, do not look. The elements need not exist."""
    for start in range(0, count, _LINE_BYTES * 8 // tvm.DataType(buffer.dtype).bits):
        T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", T.address_of(buffer[(*index[:-1], index[-1] + start)]),
                                      T.int32(_READ), T.int32(_TO_L2), T.int32(_DATA)))


class Register:
    """A mutable vector (of float32 unless ``dtype`` says otherwise) that LLVM keeps in a register."""

    def __init__(self, lanes: int, value: Any = 0.0, dtype: str = "float32") -> None:
        self.lanes, self._dtype = lanes, dtype
        # The default scope becomes a stack slot; "local" would be a heap call on the CPU.
        self._buffer = T.alloc_buffer((lanes,), dtype)
        if isinstance(value, int | float):
            value = const(value, lanes, dtype)
        self.set(value)

    def get(self) -> Any:
        return self._buffer[span(0, self.lanes)]

    def set(self, value: Any) -> None:
        T.buffer_store(self._buffer, value, [span(0, self.lanes)])

    def lane(self, i: int) -> Any:
        """One lane, as a scalar."""
        return self._buffer[i]

    def fma(self, a: Any, b: Any) -> None:
        """self += a * b, rounded once where the processor can (all but SSE)."""
        self.set(T.fma(a, b, self.get()))

    def part(self, start: int, lanes: int) -> Any:
        """``lanes`` consecutive lanes."""
        return self._buffer[span(start, lanes)]

    def sum(self) -> Any:
        """All lanes added."""
        return self.fold(lambda low, high: low + high)

    def max(self) -> Any:
        """The largest lane."""
        return self.fold(T.max)

    def fold(self, combine: Callable[[Any, Any], Any]) -> Any:
        """All lanes combined as a balanced tree."""
        part = self
        while part.lanes > 1:
            half = part.lanes // 2
            part = Register(half, combine(part.part(0, half), part.part(half, half)), self._dtype)
        return part.get()


def sums(registers: Sequence[Register]) -> Any:
    """Lane i = registers[i].sum(), bit for bit, for at most ``lanes`` registers of equal width; further lanes
    are undefined. All trees advance together, a vector instruction at a time."""
    lanes = width = registers[0].lanes
    level = [*registers, *[registers[-1]] * (lanes - len(registers))]
    while width > 1:
        half = width // 2
        low = [start + i for start in range(0, 2 * lanes, width) for i in range(half)]
        high = [i + half for i in low]
        level = [Register(lanes, _shuffle(a, b, low) + _shuffle(a, b, high)) for a, b in zip(level[::2], level[1::2])]
        width = half
    return level[0].get()


def _shuffle(a: Register, b: Register, lanes: list[int]) -> Any:
    return tvm.tirx.Shuffle([a.get(), b.get()], [T.int32(i) for i in lanes])


def for_lanes(extent: int, lanes: int, body: Callable[[Any, int], None]) -> None:
    """Emit ``body(start, lanes)`` over whole vectors, then ``body(i, 1)`` over the rest."""
    whole = extent // lanes * lanes
    if whole:
        with T.serial(0, whole // lanes) as i:
            body(i * lanes, lanes)
    if whole < extent:
        with T.serial(whole, extent) as i:
            body(i, 1)


def sum_over(extent: int, lanes: int, term: Callable[[Any, int, Register], None]) -> Any:
    """Sum in an order fixed by ``extent``: ``term(start, lanes, register)`` adds its terms to the
    register given; lane sums first, then the rest one by one."""
    total, rest = Register(lanes), Register(1)
    for_lanes(extent, lanes, lambda i, width: term(i, width, total if width == lanes else rest))
    return total.sum() + rest.get()


def rsqrt(value: Any) -> Any:
    """1 / sqrt(value), correctly rounded twice."""
    return T.float32(1) / T.sqrt(value)


_EXP_COEFFICIENTS = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
ROUND_MAGIC = 12582912.0  # 1.5 * 2**23: adding it leaves the rounded integer in the low mantissa bits
ROUND_MAGIC_BITS = 0x4B400000  # its bits as an integer


def exp(x: Any, lanes: int) -> Any:
    """e**x (x clamped to [-87, 88]), within 2 ulp; the Cephes polynomial.

    libm's expf would be called lane by lane; this stays in vector registers.
    """

    x = Register(lanes, T.max(T.min(x, splat(88.0, lanes)), splat(-87.0, lanes))).get()
    shifted = Register(lanes, T.fma(x, splat(1 / math.log(2), lanes), splat(ROUND_MAGIC, lanes))).get()
    power = shifted - splat(ROUND_MAGIC, lanes)
    r = T.fma(power, splat(-0.693359375, lanes), x)
    r = Register(lanes, T.fma(power, splat(2.12194440e-4, lanes), r)).get()
    poly = splat(_EXP_COEFFICIENTS[0], lanes)
    for coefficient in _EXP_COEFFICIENTS[1:]:
        poly = T.fma(poly, r, splat(coefficient, lanes))
    poly = T.fma(poly, r * r, r) + splat(1.0, lanes)
    int_type = vector("int32", lanes)
    exponent = T.shift_left(T.reinterpret(int_type, shifted), const(23, lanes, "int32"))
    return T.reinterpret(vector("float32", lanes), T.reinterpret(int_type, poly) + exponent)


def log(x: Any) -> Any:
    """Natural logarithm of a scalar from 1 up, within 1e-6 and exact at 1: Halley's iteration on ``exp`` (cubic), begun
    with the bits of x read as a piecewise linear logarithm."""
    bits = T.reinterpret("int32", x) - T.reinterpret("int32", T.float32(1))
    y = Register(1, T.cast(bits, "float32") * T.float32(math.log(2) / 2**23))
    for _ in range(2):
        power = Register(1, exp(y.get(), 1)).get()
        y.set(y.get() + T.float32(2) * (x - power) / (x + power))
    return T.max(y.get(), T.float32(0))


def silu(x: Any, lanes: int) -> Any:
    """x * sigmoid(x)."""
    return x / (splat(1.0, lanes) + exp(splat(0.0, lanes) - x, lanes))


def vector(dtype: str, lanes: int) -> str:
    """Name of a vector type."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"
