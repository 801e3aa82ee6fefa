"""The activation of a gated feed-forward layer."""

from __future__ import annotations

from typing import Any

import tvm

from ..builder import factory, kernel
from ..tiles import CpuTiles
from .rows import rows
from .vector import load, over_rows, silu


@factory
def gated_silu(tiles: CpuTiles, width: int, activations: str = "f32") -> tvm.tirx.PrimFunc:
    """y = silu(gate) * up. Parameters: x f32 [n, 2 * width], gate | up; y [n, width] as ``activations``."""
    with kernel(__name__) as k:
        n = k.rows_var()
        x = k.tensor((n, 2 * width))
        y = rows(k, tiles, activations, (n,), width)

        def body(row: Any) -> None:
            y.write((row,), lambda i, lanes: silu(load(x, row, i, lanes=lanes), lanes)
                    * load(x, row, width + i, lanes=lanes))

        over_rows(n, tiles.parallel_rows, body)
    return k.func
