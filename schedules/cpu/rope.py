"""Rotary position embedding: half-split rotation with cosines and sines from a table."""

from __future__ import annotations

from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import factory, kernel
from ..tiles import CpuTiles
from .vector import for_lanes, load, over_rows, splat, store


@factory
def rope_query(tiles: CpuTiles, heads: int, rope: int, positions: int, *, x_width: int) -> tvm.tirx.PrimFunc:
    """Rotated query heads.

    Parameters: x f32 [n, x_width], head h at columns h*rope; pos int32 [n]; table f32 [positions, rope] (cos, then
    sin); q f32 [n, heads, rope].
    """
    with kernel(__name__) as k:
        n = k.rows_var()
        x = k.tensor((n, x_width))
        pos = k.tensor((n,), "int32")
        table = k.tensor((positions, rope))
        q = k.tensor((n, heads, rope))

        def body(row: Any) -> None:
            with T.serial(0, heads) as head:
                rotate(tiles, rope, table, T.cast(pos[row], "int64"),
                       lambda i, lanes: load(x, row, head * rope + i, lanes=lanes),
                       lambda value, i, lanes: store(q, value, row, head, i, lanes=lanes))

        over_rows(n, tiles.parallel_rows, body)
    return k.func


def rotate(tiles: CpuTiles, rope: int, table: Any, position: Any, read: Any, write: Any) -> None:
    """Rotate one vector of ``rope`` dims: pairs are (i, i + rope/2)."""
    half = rope // 2

    def body(i: Any, lanes: int) -> None:
        low, high = read(i, lanes), read(half + i, lanes)
        cos, sin = (load(table, position, start + i, lanes=lanes) for start in (0, half))
        write(T.fma(low, cos, splat(0.0, lanes) - high * sin), i, lanes)
        write(T.fma(high, cos, low * sin), half + i, lanes)

    for_lanes(half, tiles.lanes, body)
