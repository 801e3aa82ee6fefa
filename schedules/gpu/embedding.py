"""Token embedding from the packed table that a tied lm_head shares."""

from __future__ import annotations

from functools import cache

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import when
from ..tiles import GpuTiles
from .grid import ceil_div, kernel, launch
from .matrix import matrix


@cache
def embedding(tiles: GpuTiles, vocab: int, width: int, weight_format: str, scale: float) -> tvm.tirx.PrimFunc:
    """y[t] = table[ids[t]] * scale; parameters as the CPU kernel's. A work-item takes an element."""
    with kernel(__name__) as k:
        n = k.rows_var()
        ids = k.tensor((n,), "int32")
        table = matrix(k, weight_format, (vocab, width), tiles.output_tile)
        y = k.tensor((n, width))

        with launch((ceil_div(width, tiles.items), n), (tiles.items,)) as ((block, row), (item,)):
            i = T.bind(block * tiles.items + item)
            with when(i < width):
                T.buffer_store(y, table.element((), ids[row], i) * T.float32(scale), [row, i])
    return k.func
