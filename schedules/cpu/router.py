"""The router: norm of the layer's input, expert logits, ReLU, norm over the expert axis (BlockFFN, eq. 2-3)."""

from __future__ import annotations

from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import factory, kernel
from ..tiles import CpuTiles
from .matrix import matrix
from .norm import normed_row
from .rows import FloatRows, rows
from .vector import Read, Register, for_lanes, load, over_rows, over_token_tiles, splat, store, sum_over


@factory
def router(tiles: CpuTiles, experts: int, hidden: int, norm: str, eps: float, norm_scale: float,
           dtype: str = "float32", activations: str = "f32") -> tvm.tirx.PrimFunc:
    """h = rms_norm(x); scores = norm(relu(router(h))); ``norm`` is "rms" (with a learned weight, zeros included),
    "sum" (divide by sum * norm_scale + 1e-5) or "none".

    Parameters: x f32 [n, hidden]; input norm's weight ``dtype`` [hidden]; w [experts, hidden] stored as ``dtype``;
    router norm's weight ``dtype`` [experts] if "rms"; h [n, hidden] as ``activations``; scores f32 [n, experts].
    Scores come from float32 rows whatever ``activations``; one is exactly 0 where the logit is not positive: those
    experts are inactive.
    """
    with kernel(__name__) as k:
        n = k.rows_var()
        x = k.tensor((n, hidden))
        input_weight = k.tensor((hidden,), dtype)
        w = matrix(k, tiles, dtype, (experts, hidden), tiles.output_tile)
        weight = k.tensor((experts,), dtype) if norm == "rms" else None
        h = rows(k, tiles, activations, (n,), hidden)
        scores = k.tensor((n, experts))
        block = w.token_tiles[-1]

        def body(b: Any) -> None:
            first, count = b * block, T.bind(T.min(n - b * block, T.int64(block)))
            normed = FloatRows(tiles, T.alloc_buffer((block, hidden), "float32"), hidden)
            logits = T.alloc_buffer((block, experts), "float32")
            with T.serial(0, count) as row:
                normed.write((row,), normed_row(
                    tiles, hidden, eps, lambda i, lanes: load(x, first + row, i, lanes=lanes), input_weight))
                h.write((first + row,), normed.row(row).read)
            with T.serial(0, w.count) as part:

                def emit(tile: list[Any]) -> None:
                    acc = w.registers(len(tile))
                    w.accumulate(acc, (part,), [normed.row(row) for row in tile], (w.following(part),))
                    for row, registers in zip(tile, acc):
                        w.finish(registers, part,
                                 lambda value, column, lanes: store(logits, value, row, column, lanes=lanes))

                over_token_tiles(count, w.token_tiles, emit)
            with T.serial(0, count) as row:
                score = _scores(tiles, experts, norm, eps, norm_scale,
                                lambda i, lanes: load(logits, row, i, lanes=lanes), weight)
                for_lanes(experts, tiles.lanes,
                          lambda i, lanes: store(scores, score(i, lanes), first + row, i, lanes=lanes))

        over_rows(T.floordiv(n + (block - 1), block), -(-tiles.parallel_rows // block), body)
    return k.func


def _scores(tiles: CpuTiles, experts: int, norm: str, eps: float, norm_scale: float, logits: Read,
            weight: Any) -> Read:
    """A reader of one token's scores."""

    def relu(i: Any, lanes: int) -> Any:
        return T.max(logits(i, lanes), splat(0.0, lanes))

    def add(i: Any, lanes: int, total: Register) -> None:
        total.set(total.get() + relu(i, lanes))

    if norm == "rms":
        return normed_row(tiles, experts, eps, relu, weight)
    if norm == "none":
        return relu
    total = sum_over(experts, tiles.lanes, add)
    divisor = Register(1, T.fma(total, T.float32(norm_scale), T.float32(1e-5)))
    return lambda i, lanes: relu(i, lanes) / splat(divisor.get(), lanes)
