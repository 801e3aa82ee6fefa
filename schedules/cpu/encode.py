"""Float32 rows as activations for a matrix to multiply by, all of them or gathered ones."""

from __future__ import annotations

from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import factory, kernel
from ..tiles import CpuTiles
from .rows import rows
from .vector import load, over_rows, splat


@factory
def encode(tiles: CpuTiles, width: int, activations: str, *, scale: float = 1.0,
           gather: bool = False) -> tvm.tirx.PrimFunc:
    """y = x * scale. Parameters: x f32 [n, width]; picked int32 [m] if ``gather`` (row r of y comes from row picked[r]
    of x); y [n or m, width] as ``activations``."""
    with kernel(__name__) as k:
        n = k.rows_var()
        x = k.tensor((n, width))
        m = k.rows_var() if gather else n
        picked = k.tensor((m,), "int32") if gather else None
        y = rows(k, tiles, activations, (m,), width)

        def body(row: Any) -> None:
            source = T.cast(picked[row], "int64") if gather else row

            def read(i: Any, lanes: int) -> Any:
                value = load(x, source, i, lanes=lanes)
                return value if scale == 1.0 else value * splat(scale, lanes)

            y.write((row,), read)

        over_rows(m, tiles.parallel_rows, body)
    return k.func
