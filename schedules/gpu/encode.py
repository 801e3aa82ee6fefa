"""Float32 rows as activations for a matrix to multiply by, all of them or gathered ones."""

from __future__ import annotations

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import factory, when
from ..tiles import GpuTiles
from .grid import ceil_div, kernel, launch


@factory
def encode(tiles: GpuTiles, width: int, activations: str, *, scale: float = 1.0,
           gather: bool = False) -> tvm.tirx.PrimFunc:
    """y = x * scale; parameters as the CPU kernel's, activations are float32. A work-item computes a value."""
    with kernel(__name__) as k:
        n = k.rows_var()
        x = k.tensor((n, width))
        m = k.rows_var() if gather else n
        picked = k.tensor((m,), "int32") if gather else None
        y = k.tensor((m, width))
        with launch((ceil_div(width, tiles.items), m), (tiles.items,)) as ((part, row), (item,)):
            i = part * tiles.items + item
            with when(i < width):
                value = x[picked[row] if gather else row, i]
                T.buffer_store(y, value if scale == 1.0 else value * T.float32(scale), [row, i])
    return k.func
