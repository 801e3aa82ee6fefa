"""How kernels read a packed matrix: one class per family of formats, the same three operations.

``registers`` gives accumulators for a tile of outputs, ``accumulate`` multiplies a tile by some rows of activations,
``finish`` hands out the valid outputs. Every output is one chain of fma in ascending order: over its inputs where
weights become float32, over its groups of 32 inputs where integers are multiplied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tvm.script.ir_builder import tirx as T

from ..activations import LOW_BITS, PLANES
from ..builder import Kernel, choose
from ..layout import FLOAT_FORMATS, Q4_BLOCK, Q4_CODE_WORDS, Q4_ZERO, stored_shape, tile_count
from ..tiles import CpuTiles
from .vector import Register, const, dot, load, prefetch, splat, vector

if TYPE_CHECKING:
    from .rows import Row


class Matrix:
    """A matrix parameter [..., outputs, inputs] of a kernel, tiled over its outputs."""

    def __init__(self, kernel: Kernel, tiles: CpuTiles, weight_format: str, shape: Sequence[int], tile: int,
                 token_tiles: tuple[int, ...]) -> None:
        *_, self.outputs, self.inputs = shape
        self.tile, self.count = tile, tile_count(self.outputs, tile)
        self.lanes = min(tiles.lanes, tile)
        self.token_tiles = token_tiles
        self.buffer = kernel.tensor(*stored_shape(weight_format, shape, tile))

    def registers(self, rows: int) -> list[list[Register]]:
        """Zeroed accumulators [rows][tile / lanes]."""
        return [[Register(self.lanes) for _ in range(self.tile // self.lanes)] for _ in range(rows)]

    def accumulate(self, acc: list[list[Register]], index: Sequence[Any], rows: Sequence[Row],
                   ahead: Sequence[Any]) -> None:
        """acc[t][j] += sum_i rows[t][i] * weight[index, i] for the tile at ``index`` (outer axes, tile). ``ahead``: a
        tile that will be needed soon."""
        raise NotImplementedError

    def element(self, row: Any, i: Any) -> Any:
        """Weight [row, i] of a matrix without outer axes, as a scalar."""
        raise NotImplementedError

    def finish(self, registers: list[Register], part: Any, write: Callable[[Any, Any, int], None]) -> None:
        """``write(value, first output, lanes)`` for a row of accumulators of tile ``part``; outputs that are
        padding (only in the last tile) are left out."""
        lanes = self.lanes

        def whole(first: int, last: int) -> None:
            for j in range(first, last):
                write(registers[j].get(), part * self.tile + j * lanes, lanes)

        def ragged() -> None:
            vectors, rest = divmod(self.outputs - (self.count - 1) * self.tile, lanes)
            whole(0, vectors)
            for i in range(rest):
                write(registers[vectors].lane(i), part * self.tile + vectors * lanes + i, 1)

        if self.outputs % self.tile:
            choose(part < self.count - 1, lambda: whole(0, len(registers)), ragged)
        else:
            whole(0, len(registers))

    def following(self, part: Any) -> Any:
        """The tile to fetch ahead while ``part`` is computed: the next one, the last itself (what lies behind a
        matrix is not worth reading)."""
        return T.min(part + 1, T.int64(self.count - 1))

    def _fetch(self, ahead: Sequence[Any], step: Any) -> None:
        """Prefetch what step ``step`` of the tile ``ahead`` reads: at least a whole tile before its turn."""
        prefetch(self.buffer, *ahead, step, 0, count=int(self.buffer.shape[-1]))

    @staticmethod
    def _multiply(acc: list[list[Register]], weights: list[Any], rows: Sequence[Row], i: Any) -> None:
        for row, registers in zip(rows, acc):
            x = splat(row.value(i), registers[0].lanes)
            for register, weight in zip(registers, weights):
                register.fma(x, weight)


class FloatMatrix(Matrix):
    """float32 or float16: [..., tiles, inputs, tile]."""

    def accumulate(self, acc: list[list[Register]], index: Sequence[Any], rows: Sequence[Row],
                   ahead: Sequence[Any]) -> None:
        with T.serial(0, self.inputs) as i:
            self._fetch(ahead, i)
            weights = [load(self.buffer, *index, i, j * self.lanes, lanes=self.lanes) for j in range(len(acc[0]))]
            self._multiply(acc, weights, rows, i)

    def element(self, row: Any, i: Any) -> Any:
        return load(self.buffer, T.floordiv(row, self.tile), i, T.floormod(row, self.tile), lanes=1)


class Q4Matrix(Matrix):
    """4-bit codes in blocks of 32 outputs x 32 inputs with a scale per output (q4.pack)."""

    def __init__(self, kernel: Kernel, tiles: CpuTiles, weight_format: str, shape: Sequence[int],
                 token_tiles: tuple[int, ...]) -> None:
        super().__init__(kernel, tiles, weight_format, shape, Q4_BLOCK, token_tiles)
        self._scale_dtype = "float16" if weight_format == "q4f16_1" else "float32"
        self._scales_per_word = 2 if self._scale_dtype == "float16" else 1

    def accumulate(self, acc: list[list[Register]], index: Sequence[Any], rows: Sequence[Row],
                   ahead: Sequence[Any]) -> None:
        whole, rest = divmod(self.inputs, Q4_BLOCK)
        if whole:
            with T.serial(0, whole) as block:
                self._fetch(ahead, block)
                self._block(acc, (*index, block), rows, block * Q4_BLOCK, Q4_BLOCK)
        if rest:
            self._block(acc, (*index, whole), rows, whole * Q4_BLOCK, rest)

    def element(self, row: Any, i: Any) -> Any:
        lane, within = T.floormod(row, Q4_BLOCK), T.floormod(i, Q4_BLOCK)
        index = T.floordiv(row, Q4_BLOCK), T.floordiv(i, Q4_BLOCK)
        nibble = T.floormod(within, 8)
        shift = T.floormod(nibble, 4) * 8 + T.floordiv(nibble, 4) * 4
        word = self.buffer[(*index, T.floordiv(within, 8) * Q4_BLOCK + lane)]
        code = T.bitwise_and(T.shift_right(word, T.cast(shift, "uint32")), T.uint32(15))
        scale = self.buffer[(*index, Q4_CODE_WORDS + T.floordiv(lane, self._scales_per_word))]
        if self._scale_dtype == "float16":
            half = T.shift_right(scale, T.cast(T.floormod(lane, 2) * 16, "uint32"))
            scale = T.cast(T.reinterpret("float16", T.cast(half, "uint16")), "float32")
        else:
            scale = T.reinterpret("float32", scale)
        return (T.cast(code, "float32") - T.float32(Q4_ZERO)) * scale

    def _block(self, acc: list[list[Register]], index: Sequence[Any], rows: Sequence[Row], first: Any,
               inputs: int) -> None:
        lanes, vectors = self.lanes, range(len(acc[0]))
        scales = [Register(lanes, self._scales(index, j)) for j in vectors]
        for octet in range(-(-inputs // 8)):
            words = [T.bind(self._words(index, octet * Q4_BLOCK + j * lanes, lanes)) for j in vectors]
            for nibble in range(min(8, inputs - octet * 8)):
                weights = [self._weight(words[j], nibble, scales[j]) for j in vectors]
                self._multiply(acc, weights, rows, first + octet * 8 + nibble)

    def _weight(self, words: Any, nibble: int, scale: Register) -> Any:
        shift = nibble % 4 * 8 + nibble // 4 * 4
        lanes = self.lanes
        codes = T.bitwise_and(T.shift_right(words, _all(shift, lanes)), _all(15, lanes))
        signed = T.reinterpret(vector("int32", lanes), codes)  # conversion from signed needs one instruction
        return Register(lanes, (T.cast(signed, vector("float32", lanes)) - splat(float(Q4_ZERO), lanes))
                        * scale.get()).get()

    def _scales(self, index: Sequence[Any], j: int) -> Any:
        words = self.lanes // self._scales_per_word
        raw = T.reinterpret(vector(self._scale_dtype, self.lanes), self._words(index, Q4_CODE_WORDS + j * words, words))
        return raw if self._scale_dtype == "float32" else T.cast(raw, vector("float32", self.lanes))

    def _words(self, index: Sequence[Any], start: int, count: int) -> Any:
        return self.buffer[(*index, T.ramp(start, 1, count))]


class Q4CodedMatrix(Q4Matrix):
    """The same blocks, multiplied as integers by rows of 8-bit codes: an exact int32 sum per plane and group, then
    acc = fma(sum, weight scale * row scale, acc)."""

    def __init__(self, kernel: Kernel, tiles: CpuTiles, weight_format: str, shape: Sequence[int],
                 activations: str) -> None:
        super().__init__(kernel, tiles, weight_format, shape, tiles.coded_token_tiles[PLANES[activations] - 1])
        self._dot = tiles.dot

    def accumulate(self, acc: list[list[Register]], index: Sequence[Any], rows: Sequence[Row],
                   ahead: Sequence[Any]) -> None:
        with T.serial(0, tile_count(self.inputs, Q4_BLOCK)) as block:
            self._fetch(ahead, block)
            self._coded_block(acc, (*index, block), rows, block)

    def _coded_block(self, acc: list[list[Register]], index: Sequence[Any], rows: Sequence[Row], group: Any) -> None:
        lanes, vectors, planes = self.lanes, range(len(acc[0])), range(rows[0].planes)
        sums = [[[Register(lanes, T.broadcast(row.zero(group, plane), lanes), "int32") for _ in vectors]
                 for plane in planes] for row in rows]
        for octet in range(4):
            words = [T.bind(self._words(index, octet * Q4_BLOCK + j * lanes, lanes)) for j in vectors]
            for half in range(2):
                codes = [T.bind(self._codes(word, 4 * half)) for word in words]
                for row, row_sums in zip(rows, sums):
                    for plane in planes:
                        x = row.codes(group, plane, 2 * octet + half)
                        for j in vectors:
                            row_sums[plane][j].set(dot(self._dot, row_sums[plane][j].get(), codes[j],
                                                       T.broadcast(x, lanes)))
        scales = [Register(lanes, self._scales(index, j)) for j in vectors]
        for row, row_sums, registers in zip(rows, sums, acc):
            scale = splat(row.scale(group), lanes)
            for j in vectors:
                total = row_sums[0][j].get()
                for low in row_sums[1:]:
                    total = T.shift_left(total, const(LOW_BITS, lanes, "int32")) + low[j].get()
                registers[j].fma(T.cast(total, vector("float32", lanes)), scales[j].get() * scale)

    def _codes(self, words: Any, shift: int) -> Any:
        if shift:
            words = T.shift_right(words, _all(shift, self.lanes))
        return T.bitwise_and(words, _all(0x0F0F0F0F, self.lanes))


def matrix(kernel: Kernel, tiles: CpuTiles, weight_format: str, shape: Sequence[int], tile: int,
           activations: str = "f32") -> Matrix:
    """Declare the next parameter as a matrix [..., outputs, inputs] to multiply with rows of ``activations``;
    ``tile`` outputs at a time where the format leaves the choice."""
    if weight_format in FLOAT_FORMATS:
        return FloatMatrix(kernel, tiles, weight_format, shape, tile, tiles.token_tiles)
    if activations == "f32":
        return Q4Matrix(kernel, tiles, weight_format, shape, tiles.q4_token_tiles)
    return Q4CodedMatrix(kernel, tiles, weight_format, shape, activations)


def _all(value: int, lanes: int) -> Any:
    return const(value, lanes, "uint32")
