"""RMSNorm, of all rows or of gathered ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import factory
from ..tiles import GpuTiles
from .grid import Local, float32, kernel, launch, strided, total


@factory
def rms_norm(tiles: GpuTiles, width: int, eps: float, dtype: str = "float32", activations: str = "f32", *,
             x_width: int = 0, offset: int = 0, scale: float = 1.0, gather: bool = False) -> tvm.tirx.PrimFunc:
    """y = x / sqrt(mean(x^2) + eps) * weight * scale over the ``width`` columns of a row from ``offset`` on;
    parameters as the CPU kernel's. A work-group takes a row."""
    with kernel(__name__) as k:
        n = k.rows_var()
        x = k.tensor((n, x_width or width))
        weight = k.tensor((width,), dtype)
        m = k.rows_var() if gather else n
        picked = k.tensor((m,), "int32") if gather else None
        y = k.tensor((m, width))

        with launch((m,), (tiles.items,)) as ((row,), (item,)):
            source = T.bind(picked[row]) if gather else row
            factor = norm_factor(tiles, item, width, eps, lambda i: x[source, offset + i])
            strided(item, width, tiles.items, lambda i: T.buffer_store(
                y, x[source, offset + i] * factor * float32(weight[i]) * T.float32(scale), [row, i]))
    return k.func


def norm_factor(tiles: GpuTiles, item: Any, width: int, eps: float, read: Callable[[Any], Any]) -> Any:
    """1 / sqrt(mean(read(i)^2) + eps) over i < ``width``, for all items of a group. Contains barriers."""
    squares = Local(1, 0.0)

    def square(i: Any) -> None:
        value = T.bind(read(i))
        squares.add(0, value * value)

    strided(item, width, tiles.items, square)
    (result,) = total(item, tiles.items, squares[0])
    return T.bind(inverse_root(result, width, eps))


def inverse_root(squares: Any, width: int, eps: float) -> Any:
    """1 / sqrt(squares / width + eps)"""
    return T.rsqrt(squares / T.float32(width) + T.float32(eps))
