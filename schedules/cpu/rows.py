"""Activations in a kernel: rows that matrices multiply by (formats: ``schedules.activations``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T

from ..activations import CODE_WORDS, GROUP, LARGEST_CODE, LOW_BITS, PLANES, SMALLEST, activation_shape
from ..builder import Kernel
from ..layout import Q4_ZERO
from ..tiles import CpuTiles
from .matrix import Matrix
from .vector import ROUND_MAGIC, ROUND_MAGIC_BITS, Read, Register, const, for_lanes, load, span, splat, store, vector

_MAGNITUDE_BITS = 0x7FFFFFFF



class FloatRow:
    """One row of float32 values."""

    def __init__(self, buffer: T.Buffer, index: Sequence[Any]) -> None:
        self._buffer, self._index = buffer, index

    def value(self, i: Any) -> Any:
        """Column i, as a scalar."""
        return self._buffer[(*self._index, i)]

    def read(self, i: Any, lanes: int) -> Any:
        """Columns i .. i+lanes-1."""
        return load(self._buffer, *self._index, i, lanes=lanes)


class FloatRows:
    """float32 [*outer, width]."""

    def __init__(self, tiles: CpuTiles, buffer: T.Buffer, width: int) -> None:
        self.tiles, self.buffer, self.width = tiles, buffer, width

    def row(self, *index: Any) -> FloatRow:
        """The row at ``index``."""
        return FloatRow(self.buffer, index)

    def write(self, index: Sequence[Any], read: Read) -> None:
        """Fill a row with the values ``read`` gives."""
        for_lanes(self.width, self.tiles.lanes,
                  lambda i, lanes: store(self.buffer, read(i, lanes), *index, i, lanes=lanes))

    def write_tile(self, index: Sequence[Any], matrix: Matrix, registers: list[Register], part: Any,
                   transform: Callable[[Any, int], Any]) -> None:
        """Fill the columns of tile ``part`` of a matrix's outputs with transform(accumulator, lanes)."""
        matrix.finish(registers, part,
                      lambda value, i, lanes: store(self.buffer, transform(value, lanes), *index, i, lanes=lanes))


class CodedRow:
    """One row of records."""

    def __init__(self, buffer: T.Buffer, index: Sequence[Any], planes: int) -> None:
        self._buffer, self._index, self.planes = buffer, index, planes

    def codes(self, group: Any, plane: int, k: int) -> Any:
        """Columns 4k .. 4k+3 of a group, four signed bytes in an int32."""
        return self._word(group, plane * CODE_WORDS + k)

    def scale(self, group: Any) -> Any:
        """float32 scale of a group."""
        return T.reinterpret("float32", self._word(group, self.planes * CODE_WORDS))

    def zero(self, group: Any, plane: int) -> Any:
        """What to start an int32 sum of codes * weight codes with."""
        return self._word(group, self.planes * CODE_WORDS + 1 + plane)

    def _word(self, group: Any, word: int) -> Any:
        return self._buffer[(*self._index, group, word)]


class CodedRows:
    """int32 [*outer, groups, words]: the records of ``schedules.activations``."""

    def __init__(self, tiles: CpuTiles, buffer: T.Buffer, width: int, activations: str) -> None:
        self.tiles, self.buffer, self.width = tiles, buffer, width
        self._planes, self._largest = PLANES[activations], LARGEST_CODE[activations]

    def row(self, *index: Any) -> CodedRow:
        """The row at ``index``."""
        return CodedRow(self.buffer, index, self._planes)

    def write(self, index: Sequence[Any], read: Read) -> None:
        """Encode the values ``read`` gives into a row."""
        whole, rest = divmod(self.width, GROUP)
        lanes = self.tiles.lanes
        if whole:
            with T.serial(0, whole) as group:
                self._write_group(index, group, [Register(lanes, read(group * GROUP + start, lanes))
                                                 for start in range(0, GROUP, lanes)])
        if rest:
            tail = T.alloc_buffer((GROUP,), "float32")
            for_lanes(GROUP, lanes, lambda i, width: store(tail, splat(0.0, width), i, lanes=width))
            for_lanes(rest, lanes, lambda i, width: store(tail, read(whole * GROUP + i, width), i, lanes=width))
            self._write_group(index, whole, [Register(lanes, load(tail, start, lanes=lanes))
                                             for start in range(0, GROUP, lanes)])

    def write_tile(self, index: Sequence[Any], matrix: Matrix, registers: list[Register], part: Any,
                   transform: Callable[[Any, int], Any]) -> None:
        """As FloatRows.write_tile; a tile of 4-bit outputs is a group, its padding is zero if transform(0) is."""
        self._write_group(index, part, [Register(matrix.lanes, transform(register.get(), matrix.lanes))
                                        for register in registers])

    def _write_group(self, index: Sequence[Any], group: Any, values: list[Register]) -> None:
        lanes, planes = values[0].lanes, self._planes

        def write_word(word: Any, value: Any) -> None:
            T.buffer_store(self.buffer, value, [*index, group, word])

        def integer(value: int) -> Any:
            return const(value, lanes, "int32")

        # Without the sign, floats are ordered as their bits are, and NaN comes last: one NaN makes the scale NaN.
        largest = Register(lanes, 0, "int32")
        for value in values:
            bits = T.reinterpret(vector("int32", lanes), value.get())
            largest.set(T.max(largest.get(), T.bitwise_and(bits, integer(_MAGNITUDE_BITS))))
        top = Register(1, T.reinterpret("float32", largest.max())).get()
        inverse = Register(1, T.if_then_else(top >= T.float32(SMALLEST), T.float32(self._largest) / top,
                                             T.float32(0))).get()
        write_word(planes * CODE_WORDS, T.reinterpret("int32", top / T.float32(self._largest)))
        sums = [Register(lanes, 0, "int32") for _ in range(planes)]
        for j, value in enumerate(values):
            shifted = T.fma(value.get(), splat(inverse, lanes), splat(ROUND_MAGIC, lanes))
            codes = T.reinterpret(vector("int32", lanes), shifted) - integer(ROUND_MAGIC_BITS)
            parts = [Register(lanes, codes, "int32").get()]
            if planes == 2:
                codes = parts[0]
                high = T.shift_right(codes + integer(1 << LOW_BITS >> 1), integer(LOW_BITS))
                high = Register(lanes, high, "int32").get()
                parts = [high, codes - T.shift_left(high, integer(LOW_BITS))]
            words = lanes // 4
            for plane, part in enumerate(parts):
                sums[plane].set(sums[plane].get() + part)
                packed = T.reinterpret(vector("int32", words), T.cast(part, vector("int8", lanes)))
                write_word(span(plane * CODE_WORDS + j * words, words), packed)
        for plane, total in enumerate(sums):
            write_word(planes * CODE_WORDS + 1 + plane, total.sum() * T.int32(-Q4_ZERO))


Row = FloatRow | CodedRow
Rows = FloatRows | CodedRows


def rows(kernel: Kernel, tiles: CpuTiles, activations: str, outer: Sequence[Any], width: int) -> Rows:
    """Declare the next parameter as rows of ``width`` activations."""
    return _rows(tiles, kernel.tensor(*activation_shape(activations, (*outer, width))), width, activations)


def encoded(source: FloatRows, activations: str, count: int, width: int) -> Rows:
    """The first ``width`` columns of a kernel's own float32 rows [count], in the format that matrices read."""
    if activations == "f32":
        return FloatRows(source.tiles, source.buffer, width)
    result = _rows(source.tiles, T.alloc_buffer(*activation_shape(activations, (count, width))), width, activations)
    with T.serial(0, count) as row:
        result.write((row,), source.row(row).read)
    return result


def _rows(tiles: CpuTiles, buffer: T.Buffer, width: int, activations: str) -> Rows:
    return FloatRows(tiles, buffer, width) if activations == "f32" else CodedRows(tiles, buffer, width, activations)

