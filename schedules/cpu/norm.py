"""RMSNorm, of all rows or of gathered ones."""

from __future__ import annotations

from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import factory, kernel
from ..tiles import CpuTiles
from .rows import rows
from .vector import Read, Register, load, over_rows, rsqrt, splat, sum_over


@factory
def rms_norm(tiles: CpuTiles, width: int, eps: float, dtype: str = "float32", activations: str = "f32", *,
             x_width: int = 0, offset: int = 0, scale: float = 1.0, gather: bool = False) -> tvm.tirx.PrimFunc:
    """y = x / sqrt(mean(x^2) + eps) * weight * scale over the ``width`` columns of a row from ``offset`` on.

    Parameters: x f32 [n, x_width or width]; weight ``dtype`` [width]; picked int32 [m] if ``gather``
    (row r of y comes from row picked[r] of x); y [n or m, width] as ``activations``.
    """
    with kernel(__name__) as k:
        n = k.rows_var()
        x = k.tensor((n, x_width or width))
        weight = k.tensor((width,), dtype)
        m = k.rows_var() if gather else n
        picked = k.tensor((m,), "int32") if gather else None
        y = rows(k, tiles, activations, (m,), width)

        def body(row: Any) -> None:
            source = T.cast(picked[row], "int64") if gather else row
            normed = normed_row(tiles, width, eps, lambda i, lanes: load(x, source, offset + i, lanes=lanes), weight)
            y.write((row,), normed if scale == 1.0 else lambda i, lanes: normed(i, lanes) * splat(scale, lanes))

        over_rows(m, tiles.parallel_rows, body)
    return k.func


def normed_row(tiles: CpuTiles, width: int, eps: float, read: Read, weight: Any) -> Read:
    """A reader of read / sqrt(mean(read^2) + eps) * weight for one row."""

    def square(i: Any, lanes: int, total: Register) -> None:
        value = read(i, lanes)
        total.fma(value, value)

    mean = sum_over(width, tiles.lanes, square) / T.float32(width)
    factor = Register(1, rsqrt(mean + T.float32(eps)))
    return lambda i, lanes: read(i, lanes) * splat(factor.get(), lanes) * load(weight, i, lanes=lanes)
