"""y = x W^T (+ bias), optionally scaled and added to a residual, by groups of outputs."""

from __future__ import annotations

from functools import cache
from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..layout import tile_count
from ..tiles import CpuTiles
from .vector import Register, choose, kernel, load, over_token_tiles, rows_var, splat, store


@cache
def linear(tiles: CpuTiles, inputs: int, outputs: int, dtype: str = "float32", *, groups: int = 1,
           x_width: int = 0, group_stride: int = 0, bias: bool = False,
           residual_scale: float | None = None) -> tvm.tirx.PrimFunc:
    """Group g of row t: y[t, g*outputs + o] = sum_k x[t, g*group_stride + k] * w[g, o, k] (+ bias).

    Parameters in order: x f32 [n, x_width]; w ``dtype`` [groups, tiles, inputs, tile] (layout.pack_rows);
    bias ``dtype`` [groups*outputs] if ``bias``; residual f32 [n, groups*outputs] if ``residual_scale``
    is given, then y = residual + residual_scale * (...); y f32 [n, groups*outputs].
    Each output is one chain of fma over k, whatever n.
    """
    x_width = x_width or groups * (group_stride or inputs)
    group_stride = group_stride or inputs
    tile = tiles.output_tile
    count = tile_count(outputs, tile)
    with kernel(__name__) as k:
        n = rows_var()
        x = k.tensor((n, x_width))
        w = k.tensor((groups, count, inputs, tile), dtype)
        b = k.tensor((groups * outputs,), dtype) if bias else None
        residual = k.tensor((n, groups * outputs)) if residual_scale is not None else None
        y = k.tensor((n, groups * outputs))

        def finish(value: Any, row: Any, column: Any, lanes: int) -> None:
            if b is not None:
                value = value + load(b, column, lanes=lanes)
            if residual is not None:
                value = T.fma(splat(residual_scale, lanes), value, load(residual, row, column, lanes=lanes))
            store(y, value, row, column, lanes=lanes)

        with T.parallel(0, T.int64(groups * count)) as item:
            group, index = T.floordiv(item, count), T.floormod(item, count)

            def emit(rows: list[Any]) -> None:
                acc = tile_registers(tiles, len(rows), tile)
                accumulate(acc, inputs, lambda t, i: x[rows[t], group * group_stride + i],
                           lambda i, start, lanes: load(w, group, index, i, start, lanes=lanes))
                for row, registers in zip(rows, acc):
                    store_tile(registers, index, count, outputs, tile,
                               lambda value, o, lanes: finish(value, row, group * outputs + o, lanes))

            over_token_tiles(n, tiles.token_tiles, emit)
    return k.func


def tile_registers(tiles: CpuTiles, token_tile: int, tile: int) -> list[list[Register]]:
    """Zeroed accumulators [token_tile][tile / lanes]."""
    lanes = min(tiles.lanes, tile)
    return [[Register(lanes) for _ in range(tile // lanes)] for _ in range(token_tile)]


def accumulate(acc: list[list[Register]], inputs: int, scalar: Any, vector: Any) -> None:
    """acc[t][j] += sum_i scalar(t, i) * vector(i, j*lanes, lanes), i ascending."""
    lanes = acc[0][0].lanes
    with T.serial(0, inputs) as i:
        weights = [vector(i, j * lanes, lanes) for j in range(len(acc[0]))]
        for t, registers in enumerate(acc):
            x = splat(scalar(t, i), lanes)
            for register, weight in zip(registers, weights):
                register.fma(x, weight)


def store_tile(registers: list[Register], index: Any, count: int, outputs: int, tile: int, finish: Any) -> None:
    """Call ``finish(value, first output, lanes)`` for a row of registers; outputs that are padding
    (only in the last tile) are left out."""
    lanes = registers[0].lanes

    def whole(first: int, last: int) -> None:
        for j in range(first, last):
            finish(registers[j].get(), index * tile + j * lanes, lanes)

    def ragged() -> None:
        valid = outputs - (count - 1) * tile
        whole(0, valid // lanes)
        for i in range(valid % lanes):
            j = valid // lanes
            finish(registers[j].lane(i), index * tile + j * lanes + i, 1)

    if outputs % tile:
        choose(index < count - 1, lambda: whole(0, len(registers)), ragged)
    else:
        whole(0, len(registers))
