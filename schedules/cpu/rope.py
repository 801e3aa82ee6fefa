"""Rotary position embedding: half-split rotation with cosines and sines from a table."""

from __future__ import annotations

from functools import cache
from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..tiles import CpuTiles
from .vector import for_lanes, kernel, load, over_rows, rows_var, splat, store


@cache
def rope_query(tiles: CpuTiles, heads: int, rope: int, positions: int, *, x_width: int, stride: int, offset: int,
               latent: int = 0) -> tvm.tirx.PrimFunc:
    """Query heads as attention wants them: [unrotated latent part | rotated part].

    Parameters: x f32 [n, x_width], head h's part to rotate at columns h*stride + offset; latent f32
    [n, heads*latent] if ``latent`` > 0 (MLA: the absorbed part); pos int32 [n]; table f32
    [positions, rope] (cos, then sin); q f32 [n, heads, latent + rope].
    """
    with kernel(__name__) as k:
        n = rows_var()
        x = k.tensor((n, x_width))
        absorbed = k.tensor((n, heads * latent)) if latent else None
        pos = k.tensor((n,), "int32")
        table = k.tensor((positions, rope))
        q = k.tensor((n, heads, latent + rope))

        def body(row: Any) -> None:
            with T.serial(0, heads) as head:
                if latent:
                    for_lanes(latent, tiles.lanes, lambda i, lanes: store(
                        q, load(absorbed, row, head * latent + i, lanes=lanes), row, head, i, lanes=lanes))
                rotate(tiles, rope, table, T.cast(pos[row], "int64"),
                       lambda i, lanes: load(x, row, head * stride + offset + i, lanes=lanes),
                       lambda value, i, lanes: store(q, value, row, head, latent + i, lanes=lanes))

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
