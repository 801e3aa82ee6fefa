"""How kernels read a packed matrix: one class per family of formats, the same three operations.

``registers`` gives accumulators for a tile of outputs, ``accumulate`` multiplies a tile by the inputs of
some rows, ``finish`` hands out the valid outputs. Weights become float32 in registers; every output is one
chain of fma over its inputs, in ascending order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T

from ..layout import FLOAT_FORMATS, Q4_BLOCK, Q4_CODE_WORDS, Q4_ZERO, stored_shape, tile_count
from ..tiles import CpuTiles
from .vector import Kernel, Register, choose, load, splat, vector

Scalar = Callable[[int, Any], Any]  # (row of the register tile, input) -> its value


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

    def accumulate(self, acc: list[list[Register]], index: Sequence[Any], scalar: Scalar) -> None:
        """acc[t][j] += sum_i scalar(t, i) * weight[index, i] for the tile at ``index`` (outer axes, tile)."""
        raise NotImplementedError

    def element(self, row: Any, i: Any) -> Any:
        """Weight [0, row, i] of a matrix with one outer axis, as a scalar."""
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

    @staticmethod
    def _multiply(acc: list[list[Register]], weights: list[Any], scalar: Scalar, i: Any) -> None:
        for t, registers in enumerate(acc):
            x = splat(scalar(t, i), registers[0].lanes)
            for register, weight in zip(registers, weights):
                register.fma(x, weight)


class FloatMatrix(Matrix):
    """float32 or float16: [..., tiles, inputs, tile]."""

    def accumulate(self, acc: list[list[Register]], index: Sequence[Any], scalar: Scalar) -> None:
        with T.serial(0, self.inputs) as i:
            weights = [load(self.buffer, *index, i, j * self.lanes, lanes=self.lanes) for j in range(len(acc[0]))]
            self._multiply(acc, weights, scalar, i)

    def element(self, row: Any, i: Any) -> Any:
        return load(self.buffer, 0, T.floordiv(row, self.tile), i, T.floormod(row, self.tile), lanes=1)


class Q4Matrix(Matrix):
    """4-bit codes in blocks of 32 outputs x 32 inputs with a scale per output (layout.pack_q4)."""

    def __init__(self, kernel: Kernel, tiles: CpuTiles, weight_format: str, shape: Sequence[int]) -> None:
        super().__init__(kernel, tiles, weight_format, shape, Q4_BLOCK, tiles.q4_token_tiles)
        self._scale_dtype = "float16" if weight_format == "q4f16_1" else "float32"
        self._scales_per_word = 2 if self._scale_dtype == "float16" else 1

    def accumulate(self, acc: list[list[Register]], index: Sequence[Any], scalar: Scalar) -> None:
        whole, rest = divmod(self.inputs, Q4_BLOCK)
        if whole:
            with T.serial(0, whole) as block:
                self._block(acc, (*index, block), scalar, block * Q4_BLOCK, Q4_BLOCK)
        if rest:
            self._block(acc, (*index, whole), scalar, whole * Q4_BLOCK, rest)

    def element(self, row: Any, i: Any) -> Any:
        lane, within = T.floormod(row, Q4_BLOCK), T.floormod(i, Q4_BLOCK)
        index = 0, T.floordiv(row, Q4_BLOCK), T.floordiv(i, Q4_BLOCK)
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

    def _block(self, acc: list[list[Register]], index: Sequence[Any], scalar: Scalar, first: Any, inputs: int) -> None:
        lanes, vectors = self.lanes, range(len(acc[0]))
        scales = [Register(lanes, self._scales(index, j)) for j in vectors]
        for octet in range(-(-inputs // 8)):
            words = [T.bind(self._words(index, octet * Q4_BLOCK + j * lanes, lanes)) for j in vectors]
            for nibble in range(min(8, inputs - octet * 8)):
                weights = [self._weight(words[j], nibble, scales[j]) for j in vectors]
                self._multiply(acc, weights, scalar, first + octet * 8 + nibble)

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


def matrix(kernel: Kernel, tiles: CpuTiles, weight_format: str, shape: Sequence[int], tile: int) -> Matrix:
    """Declare the next parameter as a matrix [..., outputs, inputs]; ``tile`` outputs at a time where the format
    leaves the choice."""
    if weight_format in FLOAT_FORMATS:
        return FloatMatrix(kernel, tiles, weight_format, shape, tile, tiles.token_tiles)
    return Q4Matrix(kernel, tiles, weight_format, shape)


def _all(value: int, lanes: int) -> Any:
    return T.broadcast(T.uint32(value), lanes)
