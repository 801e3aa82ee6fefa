"""Token embedding from the packed table that a tied lm_head shares."""

from __future__ import annotations

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import factory, when
from ..tiles import GpuTiles
from .grid import ceil_div, kernel, launch
from .matrix import matrix


@factory
def embedding(tiles: GpuTiles, vocab: int, width: int, weight_format: str, scale: float, *,
              row_blocks: tuple[int, ...] = ()) -> tvm.tirx.PrimFunc:
    """y[t] = table[ids[t]] * scale; parameters as the CPU kernel's, but the table in blocks of so many rows if
    ``row_blocks`` is given. A work-item takes an element."""
    with kernel(__name__) as k:
        n = k.rows_var()
        ids = k.tensor((n,), "int32")
        blocks = [matrix(k, tiles, weight_format, (rows, width)) for rows in row_blocks or (vocab,)]
        y = k.tensor((n, width))

        with launch((ceil_div(width, tiles.items), n), (tiles.items,)) as ((block, row), (item,)):
            i = T.bind(block * tiles.items + item)
            token = T.bind(ids[row])
            before = 0
            for table in blocks:
                with when(T.And(i < width, T.And(token >= before, token < before + table.outputs))):
                    T.buffer_store(y, table.element((), token - before, i) * T.float32(scale), [row, i])
                before += table.outputs
    return k.func
