"""Token embedding from the packed table that a tied lm_head shares."""

from __future__ import annotations

from functools import cache
from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..layout import tile_count
from ..tiles import CpuTiles
from .vector import kernel, load, over_rows, rows_var, store


@cache
def embedding(tiles: CpuTiles, vocab: int, width: int, dtype: str, scale: float) -> tvm.tirx.PrimFunc:
    """y[t] = table[ids[t]] * scale.

    Parameters: ids int32 [n]; table ``dtype`` [1, tiles, width, tile] (layout.pack_rows); y f32 [n, width].
    """
    tile = tiles.output_tile
    with kernel(__name__) as k:
        n = rows_var()
        ids = k.tensor((n,), "int32")
        table = k.tensor((1, tile_count(vocab, tile), width, tile), dtype)
        y = k.tensor((n, width))

        def body(row: Any) -> None:
            token = T.cast(ids[row], "int64")
            with T.serial(0, width) as i:
                value = load(table, 0, T.floordiv(token, tile), i, T.floormod(token, tile), lanes=1)
                store(y, value * T.float32(scale), row, i, lanes=1)

        over_rows(n, tiles.parallel_rows, body)
    return k.func
