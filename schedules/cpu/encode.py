"""Float32 rows as the 8-bit codes that integer kernels read."""

from __future__ import annotations

from functools import cache

import tvm

from ..tiles import CpuTiles
from .rows import rows
from .vector import kernel, load, over_rows, rows_var


@cache
def encode(tiles: CpuTiles, width: int, activations: str) -> tvm.tirx.PrimFunc:
    """y = x, as ``activations``. Parameters: x f32 [n, width]; y [n, width] as ``activations``."""
    with kernel(__name__) as k:
        n = rows_var()
        x = k.tensor((n, width))
        y = rows(k, tiles, activations, (n,), width)
        over_rows(n, tiles.parallel_rows,
                  lambda row: y.write((row,), lambda i, lanes: load(x, row, i, lanes=lanes)))
    return k.func
