"""The activation of a gated feed-forward layer."""

from __future__ import annotations

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import factory, when
from ..tiles import GpuTiles
from .grid import ceil_div, kernel, launch, silu


@factory
def gated_silu(tiles: GpuTiles, width: int, activations: str = "f32") -> tvm.tirx.PrimFunc:
    """y = silu(gate) * up; parameters as the CPU kernel's. A work-item computes a value."""
    with kernel(__name__) as k:
        n = k.rows_var()
        x = k.tensor((n, 2 * width))
        y = k.tensor((n, width))
        with launch((ceil_div(width, tiles.items), n), (tiles.items,)) as ((part, row), (item,)):
            i = part * tiles.items + item
            with when(i < width):
                T.buffer_store(y, silu(x[row, i]) * x[row, width + i], [row, i])
    return k.func
