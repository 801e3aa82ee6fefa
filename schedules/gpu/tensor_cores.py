"""Rows times a half-precision matrix on NVIDIA's tensor cores (experimental; docs/cuda.md).

A warp multiplies 16 rows by the 32 outputs of a tile, a block of 32 inputs at a time, with mma.sync.m16n8k16. Its lane
4 g + q has rows g and g + 8, inputs 8 q .. 8 q + 7 of a block, and the weights of outputs 4 g .. 4 g + 3 for these.
Which inputs and outputs the instruction's indices stand for is free as long as both factors agree on the inputs, so
that a lane reads runs of memory. Of the sums it gets those of outputs 8 q + j and 8 q + 4 + j, j = 0 .. 3.

The instruction multiplies half-precision numbers and adds in float32. A row's number x is two of them, ``high`` = x
rounded, ``low`` = 2048 (x - high) rounded, which have sums of their own: together they differ from x by 2^-22 of it,
and results are as close as those of float32 arithmetic. A row with a number beyond 65504 becomes NaN.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import tvm
from tvm.script import tirx
from tvm.script.ir_builder import tirx as T

from ..builder import when
from ..layout import tile_count
from ..tiles import GpuTiles
from .grid import Local, barrier, float32, load, shared, strided
from .matrix import BLOCK, LANES, OCTET, FloatMatrix, Matrix, Row
from .product import TENSOR_ROWS, Product, Variant

_INSTRUCTION = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
_COLUMNS = 4  # tiles of eight outputs, of which a lane has weights of one
_LOW = 2048.0


def multiplies(tiles: GpuTiles, w: Matrix) -> bool:
    """Whether there are tensor cores that can multiply by a matrix."""
    return tiles.tensor_cores and isinstance(w, FloatMatrix) and str(w.buffer.dtype) == "float16" and (
        w.inputs % BLOCK == 0 and w.tile % _COLUMNS == 0)


def product(tiles: GpuTiles, variant: Variant, w: Matrix, lane: Any, part: Any) -> Product:
    """What multiplies in the way of ``variant``."""
    return (TensorProduct if variant.tensor else Product)(tiles, variant, w, lane, part)


class TensorProduct(Product):
    """A slice is a warp, a step a block of inputs. The sums are those of ``high``, then those of ``low``."""

    def __init__(self, tiles: GpuTiles, variant: Variant, w: Matrix, lane: Any, part: Any) -> None:
        self.slices, self.slice = tiles.slices, part
        self._staged, self._lane = False, lane
        self._group, self._quarter = T.bind(T.truncdiv(lane, 4)), T.bind(T.truncmod(lane, 4))
        self.rows = [self._group, self._group + TENSOR_ROWS // 2]
        self._partial = shared((tiles.slices, TENSOR_ROWS, LANES))

    def steps(self, w: Matrix) -> int:
        return w.blocks

    def sums(self, w: Matrix) -> Local:
        return Local(2 * 4 * _COLUMNS, 0.0)

    def add(self, sums: Local, w: Matrix, outer: Sequence[Any], tile: Any, rows: Sequence[Row], step: Any) -> None:
        for start in range(0, OCTET, 4):  # an instruction's inputs
            first = T.bind(step * BLOCK + self._quarter * OCTET + start)
            weights = Local(4 * _COLUMNS, dtype="float16")
            for i in range(4):
                for column, value in enumerate(_four_outputs(w, outer, tile, self._group, first + i)):
                    weights.set(4 * column + i, value)
            high, low = Local(8, 0.0, "float16"), Local(8, 0.0, "float16")
            for place, row in enumerate(rows):
                with when(T.bool(True) if row.present is None else row.present):
                    for i, x in enumerate(row.read(first, 4)):
                        high.set(4 * place + i, T.cast(x, "float16"))
                        rest = (x - float32(high[4 * place + i])) * T.float32(_LOW)
                        low.set(4 * place + i, T.cast(rest, "float16"))
            for column in range(_COLUMNS):
                for begin, inputs in ((0, high), (4 * _COLUMNS, low)):
                    mma([sums[begin + 4 * column + i] for i in range(4)], [_pair(inputs, i) for i in (0, 4, 2, 6)],
                        [_pair(weights, 4 * column + i) for i in (0, 2)])

    def finish(self, w: Matrix, sums: Local, write: Callable[[Any, Any], None], active: Any = None) -> None:
        some = T.bool(True) if active is None else active
        with when(some):
            for column in range(_COLUMNS):
                for i in range(4):
                    place = 4 * column + i
                    value = sums[place] + sums[4 * _COLUMNS + place] * T.float32(1 / _LOW)
                    T.buffer_store(self._partial, value,
                                   [self.slice, self.rows[i // 2], self._quarter * 8 + i % 2 * 4 + column])
        barrier()

        def add_up(t: Any) -> None:
            terms = [self._partial[part, t, self._lane] for part in range(self.slices)]
            write(t, T.bind(functools.reduce(operator.add, terms)))

        with when(some):
            strided(self.slice, TENSOR_ROWS, self.slices, add_up)


def _four_outputs(w: Matrix, outer: Sequence[Any], tile: Any, number: Any, i: Any) -> list[Any]:
    """Weights of input i, as they are stored, of the four outputs from 4 * number on of a tile of 32; those beyond the
    last stored output repeat others."""
    in_tile, number = w.tile // _COLUMNS, tile * (LANES // _COLUMNS) + number
    stored = tile_count(w.outputs, w.tile) * in_tile
    if stored % (LANES // _COLUMNS):
        number = T.min(number, stored - 1)
    index = *outer, T.truncdiv(number, in_tile), i
    four = T.bind(load(w.buffer, index, T.truncmod(number, in_tile), _COLUMNS))
    return [tvm.tirx.Shuffle([four], [T.int32(j)]) for j in range(_COLUMNS)]


def _pair(halves: Local, i: int) -> Any:
    """Two neighbours in one register, the first one in the lower bits."""
    return T.reinterpret("uint32", halves[T.ramp(i, 1, 2)])


def mma(sums: Sequence[Any], a: Sequence[Any], b: Sequence[Any]) -> None:
    """sums += a b, by all lanes of a warp together; registers as in PTX ISA, "Matrix Fragments for mma.m16n8k16 with
    floating point type"."""
    T.evaluate(tirx.ptx[_INSTRUCTION](*sums, *a, *b, *sums))
