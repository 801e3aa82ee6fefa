"""RMSNorm, of all rows or of gathered ones."""

from __future__ import annotations

from functools import cache
from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..tiles import CpuTiles
from .vector import Register, for_lanes, kernel, load, over_rows, rows_var, rsqrt, splat, store, sum_over


@cache
def rms_norm(tiles: CpuTiles, width: int, eps: float, dtype: str = "float32", *, x_width: int = 0,
             scale: float = 1.0, gather: bool = False) -> tvm.tirx.PrimFunc:
    """y = x / sqrt(mean(x^2) + eps) * weight * scale over the first ``width`` columns of a row.

    Parameters: x f32 [n, x_width or width]; weight ``dtype`` [width]; rows int32 [m] if ``gather``
    (row r of y comes from row rows[r] of x); y f32 [n or m, width].
    """
    with kernel(__name__) as k:
        n = rows_var()
        x = k.tensor((n, x_width or width))
        weight = k.tensor((width,), dtype)
        m = rows_var() if gather else n
        rows = k.tensor((m,), "int32") if gather else None
        y = k.tensor((m, width))

        def body(row: Any) -> None:
            source = T.cast(rows[row], "int64") if gather else row
            norm_row(tiles, width, eps, lambda i, lanes: load(x, source, i, lanes=lanes), weight,
                     lambda value, i, lanes: store(y, value * splat(scale, lanes) if scale != 1.0 else value,
                                                   row, i, lanes=lanes))

        over_rows(m, tiles.parallel_rows, body)
    return k.func


def norm_row(tiles: CpuTiles, width: int, eps: float, read: Any, weight: Any, write: Any) -> None:
    """write(read(i) / sqrt(mean(read^2) + eps) * weight[i], i) for one row."""

    def square(i: Any, lanes: int, total: Register) -> None:
        value = read(i, lanes)
        total.fma(value, value)

    mean = sum_over(width, tiles.lanes, square) / T.float32(width)
    factor = Register(1, rsqrt(mean + T.float32(eps)))
    for_lanes(width, tiles.lanes, lambda i, lanes: write(
        read(i, lanes) * splat(factor.get(), lanes) * load(weight, i, lanes=lanes), i, lanes))
