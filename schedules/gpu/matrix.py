"""How kernels read a packed matrix: one class per family of formats.

A work-item owns one output; the 32 of a tile are neighbours, so each load of weights is one run of memory: 32 floats,
or 32 words of codes (eight inputs of each output). The inputs come in blocks of 32; the blocks of an output are dealt
out to the ``slices`` work-items that share it. Weights become float32 in registers. Unrolled: 8 inputs x the tokens of
a tile, at most 16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T

from ..builder import Kernel, choose, when
from ..layout import FLOAT_FORMATS, Q4_BLOCK, Q4_CODE_WORDS, Q4_ZERO, stored_shape, tile_count
from ..tiles import GpuTiles
from .grid import Local, barrier, float32, load4, shared, strided

LANES = 32  # outputs of a work-group
BLOCK = 32  # inputs
_OCTET = 8  # inputs of a word of codes


class Row:
    """A row of float32 activations. ``present``: whether there is such a row (None: always); one that is not there is
    not read."""

    def __init__(self, buffer: T.Buffer, index: Sequence[Any], present: Any = None) -> None:
        self._buffer, self._index, self.present = buffer, tuple(index), present

    def read(self, first: Any, count: int) -> list[Any]:
        """Columns first .. first+count-1; ``first`` is a multiple of 8."""
        values = []
        for i in range(0, count // 4 * 4, 4):
            values += load4(self._buffer, *self._index, first + i)
        return values + [T.bind(self._buffer[(*self._index, first + i)]) for i in range(len(values), count)]


class Matrix:
    """A matrix parameter [..., outputs, inputs] of a kernel."""

    def __init__(self, kernel: Kernel, weight_format: str, shape: Sequence[int], tile: int) -> None:
        *_, self.outputs, self.inputs = shape
        self.tiles, self.blocks = tile_count(self.outputs, LANES), tile_count(self.inputs, BLOCK)
        self.buffer = kernel.tensor(*stored_shape(weight_format, shape, tile))

    def output(self, tile: Any, lane: Any) -> Any:
        """The output of a work-item; items without one repeat the last."""
        output = tile * LANES + lane
        return T.bind(output if self.outputs % LANES == 0 else T.min(output, self.outputs - 1))

    def owns(self, tile: Any, lane: Any) -> Any:
        """Whether a work-item has an output of its own."""
        return T.bool(True) if self.outputs % LANES == 0 else tile * LANES + lane < self.outputs

    def accumulate(self, acc: Local, outer: Sequence[Any], output: Any, rows: Sequence[Row], slice_index: Any,
                   slices: int, scale: T.Buffer | None = None) -> None:
        """acc[t] += the sum of rows[t][i] * weight[outer, output, i] over the blocks of slice ``slice_index``;
        weights are multiplied by scale[i] first if ``scale`` is given."""
        strided(slice_index, self.blocks, slices,
                lambda block: self.add_block(acc, outer, output, rows, block, scale))

    def add_block(self, acc: Local, outer: Sequence[Any], output: Any, rows: Sequence[Row], block: Any,
                  scale: T.Buffer | None = None) -> None:
        """The same over one block of inputs."""
        whole, rest = divmod(self.inputs, BLOCK)

        def octets(inputs: int) -> None:
            weights = self._block(outer, output, block)

            def octet(number: Any, count: int) -> None:
                first = block * BLOCK + number * _OCTET
                values = weights(number, count)
                if scale is not None:
                    values = [value * float32(scale[first + i]) for i, value in enumerate(values)]
                kept = Local(count)  # a bound expression would be repeated at each use
                for i, value in enumerate(values):
                    kept.set(i, value)
                self._multiply(acc, kept, rows, first)

            if inputs >= _OCTET:
                with T.serial(0, inputs // _OCTET) as number:
                    octet(number, _OCTET)
            if inputs % _OCTET:
                octet(inputs // _OCTET, inputs % _OCTET)

        if not rest:
            octets(BLOCK)
        elif not whole:
            octets(rest)
        else:
            choose(block < whole, lambda: octets(BLOCK), lambda: octets(rest))

    def element(self, outer: Sequence[Any], output: Any, i: Any) -> Any:
        """Weight [outer, output, i], float32."""
        raise NotImplementedError

    def _block(self, outer: Sequence[Any], output: Any, block: Any) -> Callable[[Any, int], list[Any]]:
        """Reads a block of one output: (octet, count) -> its first ``count`` weights."""
        raise NotImplementedError

    @staticmethod
    def _multiply(acc: Local, weights: Local, rows: Sequence[Row], first: Any) -> None:
        for t, row in enumerate(rows):
            def add(t: int = t, row: Row = row) -> None:
                for i, value in enumerate(row.read(first, weights.size)):
                    acc.add(t, value * weights[i])

            if row.present is None:
                add()
            else:
                with when(row.present):
                    add()


class FloatMatrix(Matrix):
    """float32 or float16: [..., tiles, inputs, tile]."""

    def element(self, outer: Sequence[Any], output: Any, i: Any) -> Any:
        tile = int(self.buffer.shape[-1])
        return float32(self.buffer[(*outer, T.truncdiv(output, tile), i, T.truncmod(output, tile))])

    def _block(self, outer: Sequence[Any], output: Any, block: Any) -> Callable[[Any, int], list[Any]]:
        return lambda octet, count: [self.element(outer, output, block * BLOCK + octet * _OCTET + i)
                                     for i in range(count)]


class Q4Matrix(Matrix):
    """4-bit codes in blocks of 32 outputs x 32 inputs with a scale per output (q4.pack)."""

    def __init__(self, kernel: Kernel, weight_format: str, shape: Sequence[int], tile: int) -> None:
        super().__init__(kernel, weight_format, shape, tile)
        self._half_scales = weight_format == "q4f16_1"

    def element(self, outer: Sequence[Any], output: Any, i: Any) -> Any:
        within = T.truncmod(i, BLOCK)
        nibble = T.truncmod(within, _OCTET)
        shift = T.truncmod(nibble, 4) * 8 + T.truncdiv(nibble, 4) * 4
        index = (*outer, T.truncdiv(output, Q4_BLOCK), T.truncdiv(i, BLOCK))
        lane = T.truncmod(output, Q4_BLOCK)
        word = self.buffer[(*index, T.truncdiv(within, _OCTET) * Q4_BLOCK + lane)]
        return self._weight(word, T.cast(shift, "uint32")) * self._scale(index, lane)

    def _block(self, outer: Sequence[Any], output: Any, block: Any) -> Callable[[Any, int], list[Any]]:
        index, lane = (*outer, T.truncdiv(output, Q4_BLOCK), block), T.truncmod(output, Q4_BLOCK)
        scale = T.bind(self._scale(index, lane))

        def read(octet: Any, count: int) -> list[Any]:
            word = T.bind(self.buffer[(*index, octet * Q4_BLOCK + lane)])
            return [self._weight(word, T.uint32(i % 4 * 8 + i // 4 * 4)) * scale for i in range(count)]

        return read

    @staticmethod
    def _weight(word: Any, shift: Any) -> Any:
        code = T.bitwise_and(T.shift_right(word, shift), T.uint32(15))
        return T.cast(T.cast(code, "int32") - T.int32(Q4_ZERO), "float32")

    def _scale(self, index: Sequence[Any], lane: Any) -> Any:
        if not self._half_scales:
            return T.reinterpret("float32", self.buffer[(*index, Q4_CODE_WORDS + lane)])
        word = self.buffer[(*index, Q4_CODE_WORDS + T.truncdiv(lane, 2))]
        half = T.shift_right(word, T.cast(T.truncmod(lane, 2) * 16, "uint32"))
        return float32(T.reinterpret("float16", T.cast(half, "uint16")))


def matrix(kernel: Kernel, weight_format: str, shape: Sequence[int], tile: int) -> Matrix:
    """Declare the next parameter as a matrix [..., outputs, inputs], packed in tiles of ``tile`` outputs where the
    format leaves the choice."""
    return (FloatMatrix if weight_format in FLOAT_FORMATS else Q4Matrix)(kernel, weight_format, shape, tile)


def finish(tiles: GpuTiles, acc: Local, lane: Any, slice_index: Any, write: Callable[[Any, Any], None],
           active: Any = None) -> None:
    """Add up the sums of an output's slices, first to last, then ``write(t, sum)`` for each token t of the tile, by
    one work-item each. Contains a barrier. ``active``: whether the group has anything to write (None: it has)."""
    slices, tokens = tiles.slices, acc.size
    active = T.bool(True) if active is None else active
    partial = shared((slices, tokens, LANES))
    with when(active):
        for t in range(tokens):
            T.buffer_store(partial, acc[t], [slice_index, t, lane])
    barrier()

    def add_up(t: Any) -> None:
        result = partial[0, t, lane]
        for part in range(1, slices):
            result = result + partial[part, t, lane]
        write(t, T.bind(result))

    with when(active):
        strided(slice_index, tokens, slices, add_up)
