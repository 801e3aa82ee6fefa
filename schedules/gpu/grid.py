"""Building blocks of the GPU kernels: launches, threadgroup memory, private arrays, reductions.

A PrimFunc may hold several launches; the host runs them in order, each sees what the former wrote. All arithmetic on
indices is 32-bit. Sums have one fixed order, given the size of the work-group.

``barrier`` and whatever contains one must be reached by all work-items of a group alike, and stands outside of
conditions on what memory holds. TVM adds barriers where it believes that they lack, and refuses to where it cannot: a
condition must not read threadgroup memory (bind the value first); between two barriers no item may read what another
one writes; and as arrays that are not needed at the same time share their memory, a barrier belongs between the last
read of one and the first write of the next.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from .. import builder
from ..builder import when


def kernel(origin: str) -> Any:
    """As ``builder.kernel``, with 32-bit scalars and extents."""
    return builder.kernel(origin, "int32")


@contextmanager
def launch(groups: Sequence[Any], items: Sequence[int]) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """One device kernel of ``groups`` work-groups of ``items`` work-items, up to three axes each, the first one
    fastest; gives the indices of the group and of the item in it. No group runs where an extent of ``groups`` is 0."""
    with ExitStack() as stack:
        def enter(kind: str, extents: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(stack.enter_context(T.launch_thread(f"{kind}.{axis}", extent))
                         for axis, extent in zip("xyz", extents))
        yield enter("blockIdx", groups), enter("threadIdx", items)


def barrier() -> None:
    """Wait for all work-items of the group; they see each other's writes to threadgroup memory."""
    T.evaluate(T.tvm_storage_sync("shared"))


def shared(shape: Sequence[int], dtype: str = "float32") -> T.Buffer:
    """Threadgroup memory: one for all work-items of a group."""
    return T.alloc_buffer(tuple(shape), dtype, scope="shared")


class Local:
    """A private array of one work-item; in registers if all indices are Python integers, which are checked."""

    def __init__(self, size: int, value: Any = None, dtype: str = "float32") -> None:
        self.size, self.dtype = size, dtype
        self._buffer = T.alloc_buffer((size,), dtype, scope="local")
        if value is not None:
            for i in range(size):
                self.set(i, value)

    def __getitem__(self, i: Any) -> Any:
        return self._buffer[self._checked(i)]

    def set(self, i: Any, value: Any) -> None:
        """self[i] = value"""
        if isinstance(value, int | float):
            value = tvm.tirx.const(value, self.dtype)
        T.buffer_store(self._buffer, value, [self._checked(i)])

    def add(self, i: Any, value: Any) -> None:
        """self[i] += value"""
        self.set(i, self[i] + value)

    def _checked(self, i: Any) -> Any:
        if isinstance(i, int) and not 0 <= i < self.size:
            raise IndexError(f"element {i} of a private array of {self.size}")
        return i


def ceil_div(a: Any, b: int) -> Any:
    """Number of tiles of ``b`` that hold ``a``."""
    return -(-a // b) if isinstance(a, int) else T.floordiv(a + (b - 1), b)


def strided(first: Any, count: Any, step: int, body: Callable[[Any], None], *, unroll: bool = False) -> None:
    """``body(i)`` for i = first, first + step, … < count: a work-item's share where ``step`` of them split a loop.
    ``unroll``: if ``body`` writes threadgroup memory, whose parts TVM cannot tell apart in a loop."""
    if unroll or isinstance(count, int) and count <= step:
        for start in range(0, count, step):
            i = first + start
            if start + step <= count:
                body(i)
            else:
                with when(i < count):
                    body(i)
    else:
        with T.serial(0, T.floordiv(T.max(count - first, 0) + (step - 1), step)) as turn:
            body(T.bind(first + turn * step))


def reduce(item: Any, items: int, values: Sequence[Any], combine: Callable[[Any, Any], Any],
           dtype: str = "float32") -> list[Any]:
    """The ``values`` of each of a group's ``items`` work-items, combined in two steps of fixed order; all items get
    the results. Contains two barriers. ``item``: index in the group; ``items``: a multiple of 16."""
    parts = 16
    memory, partial = shared((len(values), items), dtype), shared((len(values), parts), dtype)

    def fold(terms: Iterable[Any]) -> Any:
        return functools.reduce(combine, terms)

    for j, value in enumerate(values):
        T.buffer_store(memory, value, [j, item])
    barrier()
    with when(item < parts):
        for j in range(len(values)):
            T.buffer_store(partial, fold(memory[j, item + first] for first in range(0, items, parts)), [j, item])
    barrier()
    return [T.bind(fold(partial[j, i] for i in range(parts))) for j in range(len(values))]


def total(item: Any, items: int, *values: Any) -> list[Any]:
    """``reduce`` by addition."""
    return reduce(item, items, values, lambda a, b: a + b)


def vector(dtype: str, lanes: int) -> str:
    """The type of a vector."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def lanes(value: Any) -> int:
    """Lanes of a value of TIR."""
    return tvm.DataType(str(value.ty.dtype)).lanes


def splat(value: Any, like: Any) -> Any:
    """A scalar in as many lanes as ``like`` has."""
    return value if lanes(like) == 1 else T.broadcast(value, lanes(like))


def float32(value: Any) -> Any:
    """A value of any float type as float32."""
    return T.cast(value, vector("float32", lanes(value)))


def load(buffer: T.Buffer, outer: Sequence[Any], number: Any, size: int) -> Any:
    """Vector ``number`` of those of ``size`` elements that buffer[outer] consists of."""
    return buffer[(*outer, number if size == 1 else T.ramp(number * size, 1, size))]


def load4(buffer: T.Buffer, *index: Any) -> list[Any]:
    """Four consecutive elements from ``index`` as scalars: one vector load where the compiler can prove that
    the flat index is a multiple of 4 (so should be the last extent)."""
    *outer, i = index
    if int(buffer.shape[-1]) % 4:
        return [T.bind(buffer[(*outer, i + j)]) for j in range(4)]
    vector = T.bind(buffer[(*outer, T.ramp(i, 1, 4))])
    return [tvm.tirx.Shuffle([vector], [T.int32(j)]) for j in range(4)]


def silu(x: Any) -> Any:
    """x * sigmoid(x)."""
    return x / (T.float32(1) + T.exp(T.float32(0) - x))
