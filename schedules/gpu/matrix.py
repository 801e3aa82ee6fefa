"""How kernels read a packed matrix: one class per family of formats.

A work-item reads the weights of neighbouring outputs in one load of up to 16 bytes: four floats of one input, eight
half-precision numbers of one input, four words of codes (eight inputs of four outputs). Its neighbours read the next
ones of the 32 outputs of a tile, those behind them the inputs that follow. So a load of 32 work-items is one run of
memory of 512 bytes, or runs of 128 (floats) and 64 bytes (half precision).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from ..builder import Kernel, choose, when
from ..layout import FLOAT_FORMATS, Q4_BLOCK, Q4_CODE_WORDS, Q4_ZERO, stored_shape, tile_count
from ..tiles import GpuTiles
from .grid import Local, float32, lanes, load, load4, splat, vector

LANES = 32  # outputs of a work-group
BLOCK = 32  # inputs that are staged together
OCTET = 8  # inputs of a word of codes


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
        """Inputs first .. first+count-1; ``first`` is a multiple of 4."""
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
    """A matrix parameter [..., outputs, inputs] of a kernel. ``vector``: outputs whose weights are read in one load. As
    float32 they are ``chunks`` vectors of equal length: lane j of number c is output chunks * j + c of these."""

    chunks = 1

    def __init__(self, kernel: Kernel, stored: tuple[tuple[int, ...], str], shape: Sequence[int], tile: int,
                 vector: int) -> None:
        *_, self.outputs, self.inputs = shape
        self.tiles, self.blocks = tile_count(self.outputs, LANES), tile_count(self.inputs, BLOCK)
        self.octets = tile_count(self.inputs, OCTET)
        self.buffer = kernel.tensor(*stored)
        IRBuilder.name("weights", self.buffer)  # for readers of the generated text
        self.vector, self.tile = min(vector, tile), tile

    @property
    def vectors(self) -> int:
        """Vectors of the outputs of a work-group."""
        return LANES // self.vector

    def output(self, tile: Any, lane: Any) -> Any:
        """The output of a work-item; items without one repeat the last."""
        output = tile * LANES + lane
        return T.bind(output if self.outputs % LANES == 0 else T.min(output, self.outputs - 1))

    def owns(self, tile: Any, lane: Any) -> Any:
        """Whether a work-item has an output of its own."""
        return T.bool(True) if self.outputs % LANES == 0 else tile * LANES + lane < self.outputs

    def sums(self, rows: int) -> Local:
        """For the sums of ``rows`` rows and a vector of outputs, zeros: row t's are ``chunks`` vectors from t * chunks
        on."""
        return Local(rows * self.chunks, 0.0, vector("float32", self.vector // self.chunks))

    def put(self, target: T.Buffer, index: Sequence[Any], number: Any, chunk: int, value: Any) -> None:
        """Store a chunk of vector ``number`` to a row of threadgroup memory for the outputs of a work-group."""
        width = self.vector // self.chunks
        first = number * self.vector + chunk * width
        T.buffer_store(target, value, [*index, first if width == 1 else T.ramp(first, 1, width)])

    def column(self, lane: Any) -> Any:
        """Where ``put`` has put output ``lane`` of a work-group."""
        if self.chunks == 1:
            return lane
        within = T.truncmod(lane, self.vector)
        # A bound expression would be repeated at each use.
        return Local(1, lane - within + T.truncmod(within, self.chunks) * (self.vector // self.chunks)
                     + T.truncdiv(within, self.chunks), "int32")[0]

    def accumulate(self, sums: Local, outer: Sequence[Any], tile: Any, number: Any, rows: Sequence[Row], octet: Any,
                   scale: T.Buffer | None = None) -> None:
        """sums[t] += the sum of rows[t][i] * weight[outer, output, i] over the inputs i of an octet, for the outputs of
        a tile's vector ``number``; weights are multiplied by scale[i] first if ``scale`` is given."""
        def emit(count: int) -> None:
            read = self._octet(outer, tile, number, octet)

            def add(within: Any, count: int) -> None:
                first = octet * OCTET + within
                weights = [read(within + i) for i in range(count)]
                if scale is not None:
                    factors = [T.bind(float32(scale[first + i])) for i in range(count)]
                    weights = [[value * splat(factor, value) for value in values]
                               for values, factor in zip(weights, factors)]
                _multiply(sums, weights, rows, first)

            _in_runs(count, 4, add)

        self._for_part(octet, OCTET, emit)

    def stage(self, target: T.Buffer, outer: Sequence[Any], tile: Any, block: Any, item: Any, items: int) -> None:
        """Put the weights of a block and a tile into target[i], i = 0 being the block's first input; the ``items``
        work-items of a group share this out."""
        number = T.truncmod(item, self.vectors)
        count = max(1, BLOCK * self.vectors // items)
        first = T.bind(T.truncdiv(item, self.vectors) * count)

        with when(first < BLOCK if items > BLOCK * self.vectors else T.bool(True)):
            read = self._octet(outer, tile, number, block * (BLOCK // OCTET) + T.truncdiv(first, OCTET))
            for i in range(count):
                there = T.bool(True) if self.inputs % BLOCK == 0 else block * BLOCK + first + i < self.inputs
                with when(there):
                    for chunk, value in enumerate(read(T.truncmod(first, OCTET) + i)):
                        self.put(target, (first + i,), number, chunk, value)

    def add_staged(self, acc: Local, rows: Sequence[Row], block: Any, weight: Callable[[Any], Any]) -> None:
        """acc[t] += the sum of rows[t][i] * weight over the inputs i of a block, ``weight(j)`` being its j-th."""
        self._for_part(block, BLOCK, lambda inputs: _in_runs(inputs, OCTET, lambda first, count: _multiply(
            acc, [[weight(first + i)] for i in range(count)], rows, block * BLOCK + first)))

    def _for_part(self, number: Any, size: int, emit: Callable[[int], None]) -> None:
        """``emit(inputs)`` for the inputs of part ``number``, where parts have ``size`` and the last one the rest."""
        whole, rest = divmod(self.inputs, size)
        if not rest:
            emit(size)
        elif not whole:
            emit(rest)
        else:
            choose(number < whole, lambda: emit(size), lambda: emit(rest))

    def _place(self, tile: Any, number: Any) -> tuple[Any, Any, int]:
        """Where a work-group's vector is: the stored tile, the number of the vector in that; vectors beyond the last
        repeat it."""
        in_tile, number = self.tile // self.vector, tile * self.vectors + number
        stored = tile_count(self.outputs, self.tile) * in_tile
        if stored % self.vectors:
            number = T.min(number, stored - 1)
        return T.truncdiv(number, in_tile), T.truncmod(number, in_tile)

    def element(self, outer: Sequence[Any], output: Any, i: Any) -> Any:
        """Weight [outer, output, i], float32."""
        raise NotImplementedError

    def _octet(self, outer: Sequence[Any], tile: Any, number: Any, octet: Any) -> Callable[[Any], list[Any]]:
        """Reads an octet of a tile's vector ``number``: the weights of its i-th input, in ``chunks``."""
        raise NotImplementedError


class FloatMatrix(Matrix):
    """float32 or float16: [..., tiles, inputs, tile]."""

    def __init__(self, kernel: Kernel, tiles: GpuTiles, weight_format: str, shape: Sequence[int], tile: int) -> None:
        half = weight_format == "float16"
        super().__init__(kernel, stored_shape(weight_format, shape, tile), shape, tile,
                         min(tiles.load_bytes // 2, tiles.load_lanes) if half else tiles.load_bytes // 4)
        if half and self.vector > 1:
            self.chunks = 2

    def element(self, outer: Sequence[Any], output: Any, i: Any) -> Any:
        return float32(self.buffer[(*outer, T.truncdiv(output, self.tile), i, T.truncmod(output, self.tile))])

    def _octet(self, outer: Sequence[Any], tile: Any, number: Any, octet: Any) -> Callable[[Any], list[Any]]:
        stored, number = self._place(tile, number)

        def read(i: Any) -> list[Any]:
            index = *outer, stored, octet * OCTET + i
            if self.chunks == 1:
                return [float32(load(self.buffer, index, number, self.vector))]
            halves = load(self.buffer, index, number, self.vector)
            pairs = T.bind(T.reinterpret(vector("uint32", self.vector // 2), halves))
            parts = pairs, T.shift_right(pairs, splat(T.uint32(16), pairs))
            half, bits = (vector(dtype, self.vector // 2) for dtype in ("float16", "uint16"))
            return [float32(T.reinterpret(half, T.cast(part, bits))) for part in parts]

        return read


class Q4Matrix(Matrix):
    """4-bit codes in blocks of 32 outputs x 32 inputs with a scale per output (q4.pack)."""

    def __init__(self, kernel: Kernel, tiles: GpuTiles, weight_format: str, shape: Sequence[int], tile: int) -> None:
        super().__init__(kernel, stored_shape(weight_format, shape, tile), shape, Q4_BLOCK, tiles.load_bytes // 4)
        self._half_scales = weight_format == "q4f16_1"

    def element(self, outer: Sequence[Any], output: Any, i: Any) -> Any:
        within = T.truncmod(i, Q4_BLOCK)
        index = *outer, T.truncdiv(output, Q4_BLOCK), T.truncdiv(i, Q4_BLOCK)
        lane = T.truncmod(output, Q4_BLOCK)
        word = self.buffer[(*index, T.truncdiv(within, OCTET) * Q4_BLOCK + lane)]
        return _decoded(word, T.truncmod(within, OCTET)) * self._scale(index, lane)

    def _octet(self, outer: Sequence[Any], tile: Any, number: Any, octet: Any) -> Callable[[Any], list[Any]]:
        stored, number = self._place(tile, number)
        octets = Q4_BLOCK // OCTET
        index, row = (*outer, stored, T.truncdiv(octet, octets)), T.truncmod(octet, octets) * (Q4_BLOCK // self.vector)
        words = T.bind(load(self.buffer, index, row + number, self.vector))
        scales = T.bind(self._scales(index, number))
        return lambda i: [_decoded(words, i) * scales]

    def _scales(self, index: Sequence[Any], number: Any) -> Any:
        """Of the outputs of a vector."""
        if self._half_scales and self.vector == 1:
            return self._scale(index, number)
        dtype, size = ("float16", self.vector // 2) if self._half_scales else ("float32", self.vector)
        words = load(self.buffer, index, Q4_CODE_WORDS // size + number, size)
        return float32(T.reinterpret(vector(dtype, self.vector), words))

    def _scale(self, index: Sequence[Any], lane: Any) -> Any:
        """Of one output."""
        if not self._half_scales:
            return T.reinterpret("float32", self.buffer[(*index, Q4_CODE_WORDS + lane)])
        word = self.buffer[(*index, Q4_CODE_WORDS + T.truncdiv(lane, 2))]
        half = T.shift_right(word, T.cast(T.truncmod(lane, 2) * 16, "uint32"))
        return float32(T.reinterpret("float16", T.cast(half, "uint16")))


def matrix(kernel: Kernel, tiles: GpuTiles, weight_format: str, shape: Sequence[int], tile: int = LANES) -> Matrix:
    """Declare the next parameter as a matrix [..., outputs, inputs], packed in tiles of ``tile`` outputs where the
    format leaves the choice."""
    return (FloatMatrix if weight_format in FLOAT_FORMATS else Q4Matrix)(kernel, tiles, weight_format, shape, tile)


def _decoded(words: Any, i: Any) -> Any:
    """Codes of the i-th input of words, as numbers."""
    shift = T.cast(T.truncmod(i, 4) * 8 + T.truncdiv(i, 4) * 4, "uint32")
    codes = T.bitwise_and(T.shift_right(words, splat(shift, words)), splat(T.uint32(15), words))
    return float32(T.cast(codes, vector("int32", lanes(words))) - splat(T.int32(Q4_ZERO), words))


def _multiply(acc: Local, weights: Sequence[Sequence[Any]], rows: Sequence[Row], first: Any) -> None:
    """acc[t] += rows[t][first + i] * weights[i], for all rows t and in the order of i."""
    chunks = len(weights[0])
    values = Local(len(weights) * chunks, dtype=acc.dtype)  # a bound expression would be repeated at each use
    for i, parts in enumerate(weights):
        for chunk, value in enumerate(parts):
            values.set(i * chunks + chunk, value)
    for t, row in enumerate(rows):
        with when(T.bool(True) if row.present is None else row.present):
            for i, x in enumerate(row.read(first, len(weights))):
                x = T.bind(splat(x, acc[0]))
                for chunk in range(chunks):
                    acc.add(t * chunks + chunk, x * values[i * chunks + chunk])


def _in_runs(count: int, size: int, emit: Callable[[Any, int], None]) -> None:
    """``emit(first, number)`` for ``count`` inputs in runs of ``size``; the last one may have fewer."""
    if count >= size:
        with T.serial(0, count // size) as run:
            emit(run * size, size)
    if count % size:
        emit(count // size * size, count % size)
