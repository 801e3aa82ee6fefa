"""How kernels read a packed matrix: one class per family of formats.

A work-item owns one output; the 32 of a tile are neighbours, so each load of weights is one run of memory: 32 floats,
or 32 words of codes (eight inputs of each output). The inputs come in blocks of 32. Unrolled: 8 inputs x the rows of a
work-item, at most 16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T

from ..builder import Kernel, choose, when
from ..layout import FLOAT_FORMATS, Q4_BLOCK, Q4_CODE_WORDS, Q4_ZERO, stored_shape, tile_count
from .grid import Local, float32, load4, strided

LANES = 32  # outputs of a work-group
BLOCK = 32  # inputs
_OCTET = 8  # inputs of a word of codes


class Row:
    """A row of float32 activations. ``present``: whether there is such a row (None: always); one that is not there is
    not read. ``start``: the input that its first column holds."""

    def __init__(self, buffer: T.Buffer, index: Sequence[Any], present: Any = None, start: Any = 0) -> None:
        self._buffer, self._index, self.present, self._start = buffer, tuple(index), present, start

    @property
    def in_group(self) -> bool:
        """Whether it is in threadgroup memory."""
        return self._buffer.scope() == "shared"

    def read(self, first: Any, count: int) -> list[Any]:
        """Inputs first .. first+count-1; ``first`` is a multiple of 8."""
        first, values = first - self._start, []
        for i in range(0, count // 4 * 4, 4):
            values += load4(self._buffer, *self._index, first + i)
        return values + [T.bind(self._buffer[(*self._index, first + i)]) for i in range(len(values), count)]

    def stage(self, target: T.Buffer, t: Any, start: Any, lane: Any, inputs: int) -> Row:
        """The 32 inputs from ``start`` on, which 32 work-items copy to target[t]; there are ``inputs`` in all."""
        there = T.bool(True) if inputs % BLOCK == 0 else start + lane < inputs
        with when(there if self.present is None else T.And(there, self.present)):
            T.buffer_store(target, self._buffer[(*self._index, start + lane)], [t, lane])
        return Row(target, (t,), self.present, start)


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
        def octet(weights: Callable[[Any, int], list[Any]], number: Any, count: int) -> None:
            first = block * BLOCK + number * _OCTET
            values = weights(number, count)
            if scale is not None:
                values = [value * float32(scale[first + i]) for i, value in enumerate(values)]
            self._multiply(acc, values, rows, first)

        def octets(inputs: int) -> None:
            weights = self._block(outer, output, block)
            self._for_octets(inputs, lambda number, count: octet(weights, number, count))

        self._for_block(block, octets)

    def stage(self, outer: Sequence[Any], output: Any, block: Any, part: Any, parts: int,
              store: Callable[[Any, Any], None]) -> None:
        """``store(i, weight)`` for the inputs i of a block (0 is its first) that are the share of ``part`` where
        ``parts`` work-items take one octet after the other."""
        def octets(inputs: int) -> None:
            weights = self._block(outer, output, block)

            def octet(number: Any, count: int) -> None:
                for i, value in enumerate(weights(number, count)):
                    store(number * _OCTET + i, value)

            strided(part, inputs // _OCTET, parts, lambda number: octet(number, _OCTET), unroll=True)
            if inputs % _OCTET:
                with when(part == inputs // _OCTET % parts):
                    octet(inputs // _OCTET, inputs % _OCTET)

        self._for_block(block, octets)

    def add_staged(self, acc: Local, rows: Sequence[Row], block: Any, weight: Callable[[Any], Any]) -> None:
        """acc[t] += the sum of rows[t][i] * weight over the inputs i of a block, ``weight(j)`` being its j-th."""
        self._for_block(block, lambda inputs: self._for_octets(inputs, lambda number, count: self._multiply(
            acc, [weight(number * _OCTET + i) for i in range(count)], rows, block * BLOCK + number * _OCTET)))

    def _for_block(self, block: Any, emit: Callable[[int], None]) -> None:
        """``emit(inputs)`` for the inputs that a block has."""
        whole, rest = divmod(self.inputs, BLOCK)
        if not rest:
            emit(BLOCK)
        elif not whole:
            emit(rest)
        else:
            choose(block < whole, lambda: emit(BLOCK), lambda: emit(rest))

    @staticmethod
    def _for_octets(inputs: int, emit: Callable[[Any, int], None]) -> None:
        """``emit(number, count)`` for the octets of a block, the last of which may have fewer inputs."""
        if inputs >= _OCTET:
            with T.serial(0, inputs // _OCTET) as number:
                emit(number, _OCTET)
        if inputs % _OCTET:
            emit(inputs // _OCTET, inputs % _OCTET)

    def element(self, outer: Sequence[Any], output: Any, i: Any) -> Any:
        """Weight [outer, output, i], float32."""
        raise NotImplementedError

    def _block(self, outer: Sequence[Any], output: Any, block: Any) -> Callable[[Any, int], list[Any]]:
        """Reads a block of one output: (octet, count) -> its first ``count`` weights."""
        raise NotImplementedError

    @staticmethod
    def _multiply(acc: Local, values: Sequence[Any], rows: Sequence[Row], first: Any) -> None:
        weights = Local(len(values))  # a bound expression would be repeated at each use
        for i, value in enumerate(values):
            weights.set(i, value)
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
