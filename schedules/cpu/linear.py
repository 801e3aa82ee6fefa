"""y = x W^T (+ bias), optionally scaled and added to a residual, by groups of outputs."""

from __future__ import annotations

from functools import cache
from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..tiles import CpuTiles
from .matrix import matrix
from .vector import kernel, load, over_token_tiles, rows_var, splat, store


@cache
def linear(tiles: CpuTiles, inputs: int, outputs: int, weight_format: str = "float32", *, groups: int = 1,
           x_width: int = 0, group_stride: int = 0, bias_dtype: str = "",
           residual_scale: float | None = None) -> tvm.tirx.PrimFunc:
    """Group g of row t: y[t, g*outputs + o] = sum_k x[t, g*group_stride + k] * w[g, o, k] (+ bias).

    Parameters in order: x f32 [n, x_width]; w [groups, outputs, inputs] stored as ``weight_format`` (layout);
    bias ``bias_dtype`` [groups*outputs] if given; residual f32 [n, groups*outputs] if ``residual_scale``
    is given, then y = residual + residual_scale * (...); y f32 [n, groups*outputs].
    Each output is one chain of fma over k, whatever n.
    """
    x_width = x_width or groups * (group_stride or inputs)
    group_stride = group_stride or inputs
    with kernel(__name__) as k:
        n = rows_var()
        x = k.tensor((n, x_width))
        w = matrix(k, tiles, weight_format, (groups, outputs, inputs), tiles.output_tile)
        b = k.tensor((groups * outputs,), bias_dtype) if bias_dtype else None
        residual = k.tensor((n, groups * outputs)) if residual_scale is not None else None
        y = k.tensor((n, groups * outputs))

        def finish(value: Any, row: Any, column: Any, lanes: int) -> None:
            if b is not None:
                value = value + load(b, column, lanes=lanes)
            if residual is not None:
                value = T.fma(splat(residual_scale, lanes), value, load(residual, row, column, lanes=lanes))
            store(y, value, row, column, lanes=lanes)

        with T.parallel(0, T.int64(groups * w.count)) as item:
            group, part = T.floordiv(item, w.count), T.floormod(item, w.count)

            def emit(rows: list[Any]) -> None:
                acc = w.registers(len(rows))
                w.accumulate(acc, (group, part), lambda t, i: x[rows[t], group * group_stride + i])
                for row, registers in zip(rows, acc):
                    w.finish(registers, part,
                             lambda value, o, lanes: finish(value, row, group * outputs + o, lanes))

            over_token_tiles(n, w.token_tiles, emit)
    return k.func
