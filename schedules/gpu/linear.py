"""y = x W^T (+ bias), optionally scaled and added to a residual."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import factory, when
from ..tiles import GpuTiles
from .grid import ceil_div, float32, kernel, launch
from .matrix import LANES, Matrix, Row, matrix
from .product import Variant, by_tokens, variants
from .tensor_cores import multiplies, product


@factory
def linear(tiles: GpuTiles, inputs: int, outputs: int, weight_format: str = "float32", activations: str = "f32", *,
           bias_dtype: str = "", residual_scale: float | None = None,
           row_blocks: tuple[int, ...] = ()) -> tvm.tirx.PrimFunc:
    """y[t, o] = sum_k x[t, k] * w[o, k] (+ bias); parameters as the CPU kernel's, but w in blocks of so many rows if
    ``row_blocks`` is given, with a launch each. A work-group computes a tile of outputs for a tile of tokens."""
    with kernel(__name__) as k:
        n = k.rows_var()
        x = k.tensor((n, inputs))
        blocks = [matrix(k, tiles, weight_format, (rows, inputs)) for rows in row_blocks or (outputs,)]
        b = k.tensor((outputs,), bias_dtype) if bias_dtype else None
        residual = k.tensor((n, outputs)) if residual_scale is not None else None
        y = k.tensor((n, outputs))

        def emit(variant: Variant) -> None:
            before = 0
            for w in blocks:
                emit_block(variant, w, before)
                before += w.outputs

        def emit_block(variant: Variant, w: Matrix, before: int) -> None:
            groups = ceil_div(n, variant.tokens), w.tiles  # those that read the same weights are neighbours
            with launch(groups, (LANES, tiles.slices)) as ((block, tile), (lane, part)):
                first, output = block * variant.tokens, w.output(tile, lane)
                multiplier, column = product(tiles, variant, w, lane, part), before + output

                def write(t: Any, value: Any) -> None:
                    row = first + t
                    with when(T.And(w.owns(tile, lane), row < n)):
                        if b is not None:
                            value = value + float32(b[column])
                        if residual is not None:
                            value = residual[row, column] + T.float32(residual_scale) * value
                        T.buffer_store(y, value, [row, column])

                multiplier.multiply(w, (), tile, token_rows(x, first, multiplier.rows, n), write)

        by_tokens(n, variants(tiles, blocks[0], tensor=multiplies(tiles, blocks[0])), emit)
    return k.func


@factory
def linear_heads(tiles: GpuTiles, heads: int, inputs: int, outputs: int, weight_format: str = "float32",
                 activations: str = "f32") -> tvm.tirx.PrimFunc:
    """y[t, h * outputs + o] = sum_k x[t, k] * w[h, o, k]; parameters as the CPU kernel's. A work-group computes a tile
    of a head's outputs for a tile of tokens."""
    with kernel(__name__) as k:
        n = k.rows_var()
        x = k.tensor((n, inputs))
        w = matrix(k, tiles, weight_format, (heads, outputs, inputs))
        y = k.tensor((n, heads * outputs))

        def emit(variant: Variant) -> None:
            groups = ceil_div(n, variant.tokens), w.tiles, heads  # those that read the same weights are neighbours
            with launch(groups, (LANES, tiles.slices)) as ((block, tile, head), (lane, part)):
                first, output = block * variant.tokens, w.output(tile, lane)
                multiplier = product(tiles, variant, w, lane, part)

                def write(t: Any, value: Any) -> None:
                    with when(T.And(w.owns(tile, lane), first + t < n)):
                        T.buffer_store(y, value, [first + t, head * outputs + output])

                multiplier.multiply(w, (head,), tile, token_rows(x, first, multiplier.rows, n), write)

        by_tokens(n, variants(tiles, w, tensor=multiplies(tiles, w)), emit)
    return k.func


def token_rows(x: T.Buffer, first: Any, offsets: Sequence[Any], n: Any) -> list[Row]:
    """Rows first + offset of x [n, width]; row ``first`` exists."""
    return [Row(x, (first + t,), None if isinstance(t, int) and t == 0 else first + t < n) for t in offsets]
