"""Rotary position embedding: half-split rotation with cosines and sines from a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import factory
from ..tiles import GpuTiles
from .grid import kernel, launch, strided


@factory
def rope_query(tiles: GpuTiles, heads: int, rope: int, positions: int, *, x_width: int) -> tvm.tirx.PrimFunc:
    """Rotated query heads; parameters as the CPU kernel's. A work-group takes a head of a token."""
    with kernel(__name__) as k:
        n = k.rows_var()
        x = k.tensor((n, x_width))
        pos = k.tensor((n,), "int32")
        table = k.tensor((positions, rope))
        q = k.tensor((n, heads, rope))

        with launch((heads, n), (tiles.output_tile,)) as ((head, row), (item,)):
            rotate(item, tiles.output_tile, rope, table, T.bind(pos[row]), lambda i: x[row, head * rope + i],
                   lambda value, i: T.buffer_store(q, value, [row, head, i]))
    return k.func


def rotate(item: Any, items: int, rope: int, table: T.Buffer, position: Any, read: Callable[[Any], Any],
           write: Callable[[Any, Any], None]) -> None:
    """Rotate one vector of ``rope`` dims, shared by ``items`` work-items: pairs are (i, i + rope/2)."""
    half = rope // 2

    def pair(i: Any) -> None:
        low, high = T.bind(read(i)), T.bind(read(half + i))
        cos, sin = T.bind(table[position, i]), T.bind(table[position, half + i])
        write(low * cos - high * sin, i)
        write(high * cos + low * sin, half + i)

    strided(item, half, items, pair)
