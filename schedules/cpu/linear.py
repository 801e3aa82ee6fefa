"""y = x W^T (+ bias), optionally scaled and added to a residual."""

from __future__ import annotations

from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import factory, kernel
from ..tiles import CpuTiles
from .matrix import matrix
from .rows import rows
from .vector import load, over_token_tiles, splat, store


@factory
def linear(tiles: CpuTiles, inputs: int, outputs: int, weight_format: str = "float32", activations: str = "f32", *,
           bias_dtype: str = "", residual_scale: float | None = None) -> tvm.tirx.PrimFunc:
    """y[t, o] = sum_k x[t, k] * w[o, k] (+ bias).

    Parameters in order: x [n, inputs] as ``activations``; w [outputs, inputs] stored as ``weight_format`` (layout);
    bias ``bias_dtype`` [outputs] if given; residual f32 [n, outputs] if ``residual_scale`` is given, then
    y = residual + residual_scale * (...); y f32 [n, outputs]. Each output is one chain of fma, whatever n.
    """
    with kernel(__name__) as k:
        n = k.rows_var()
        x = rows(k, tiles, activations, (n,), inputs)
        w = matrix(k, tiles, weight_format, (outputs, inputs), tiles.output_tile, activations)
        b = k.tensor((outputs,), bias_dtype) if bias_dtype else None
        residual = k.tensor((n, outputs)) if residual_scale is not None else None
        y = k.tensor((n, outputs))

        def finish(value: Any, row: Any, column: Any, lanes: int) -> None:
            if b is not None:
                value = value + load(b, column, lanes=lanes)
            if residual is not None:
                value = T.fma(splat(residual_scale, lanes), value, load(residual, row, column, lanes=lanes))
            store(y, value, row, column, lanes=lanes)

        with T.parallel(0, T.int64(w.count)) as part:

            def emit(tile: list[Any]) -> None:
                acc = w.registers(len(tile))
                w.accumulate(acc, (part,), [x.row(row) for row in tile], (w.following(part),))
                for row, registers in zip(tile, acc):
                    w.finish(registers, part, lambda value, column, lanes: finish(value, row, column, lanes))

            over_token_tiles(n, w.token_tiles, emit)
    return k.func


@factory
def linear_heads(tiles: CpuTiles, heads: int, inputs: int, outputs: int, weight_format: str = "float32",
                 activations: str = "f32") -> tvm.tirx.PrimFunc:
    """y[t, h * outputs + o] = sum_k x[t, k] * w[h, o, k]: every head's matrix times the same rows.

    Parameters: x [n, inputs] as ``activations``; w [heads, outputs, inputs] stored as ``weight_format``; y f32
    [n, heads * outputs].
    """
    with kernel(__name__) as k:
        n = k.rows_var()
        x = rows(k, tiles, activations, (n,), inputs)
        w = matrix(k, tiles, weight_format, (heads, outputs, inputs), tiles.output_tile, activations)
        y = k.tensor((n, heads * outputs))

        with T.parallel(0, T.int64(heads)) as head:

            def emit(tile: list[Any]) -> None:
                with T.serial(0, w.count) as part:
                    acc = w.registers(len(tile))
                    w.accumulate(acc, (head, part), [x.row(row) for row in tile], (head, w.following(part)))
                    for row, registers in zip(tile, acc):
                        w.finish(registers, part, lambda value, i, lanes: store(
                            y, value, row, head * outputs + i, lanes=lanes))

            over_token_tiles(n, w.token_tiles, emit)
    return k.func
