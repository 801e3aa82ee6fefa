"""Token embedding from the packed table that a tied lm_head shares."""

from __future__ import annotations

from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import factory, kernel
from ..tiles import CpuTiles
from .matrix import matrix
from .vector import over_rows, store


@factory
def embedding(tiles: CpuTiles, vocab: int, width: int, weight_format: str, scale: float) -> tvm.tirx.PrimFunc:
    """y[t] = table[ids[t]] * scale.

    Parameters: ids int32 [n]; table [vocab, width] stored as ``weight_format``; y f32 [n, width].
    """
    with kernel(__name__) as k:
        n = k.rows_var()
        ids = k.tensor((n,), "int32")
        table = matrix(k, tiles, weight_format, (vocab, width), tiles.output_tile)
        y = k.tensor((n, width))

        def body(row: Any) -> None:
            token = T.cast(ids[row], "int64")
            with T.serial(0, width) as i:
                store(y, table.element(token, i) * T.float32(scale), row, i, lanes=1)

        over_rows(n, tiles.parallel_rows, body)
    return k.func
