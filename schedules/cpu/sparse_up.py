"""Up projection of the active experts, with SiLU and the router's score in its epilogue."""

from __future__ import annotations

from functools import cache
from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..tiles import CpuTiles
from .matrix import matrix
from .union import union_tensors
from .vector import kernel, over_token_tiles, rows_var, silu, splat, store


@cache
def sparse_up(tiles: CpuTiles, experts: int, inputs: int, expert_size: int, weight_format: str) -> tvm.tirx.PrimFunc:
    """act[i, j, d] = silu(sum_h x[t, h] * w[e, d, h]) * scores[t, e] with e = ids[i], t = tokens[i, j].

    Parameters: x f32 [n, inputs]; scores f32 [n, experts]; ids, count, uses, tokens as ``union`` leaves them;
    w [experts, expert_size, inputs] stored as ``weight_format``; act f32 [experts, n, expert_size], by place i in the
    union and j among the expert's tokens (the numpy twin: by token and expert), of which only the places
    i < count, j < uses[i] are written. Only active pairs of token and expert are computed; weights of experts
    outside the union are never read.
    """
    with kernel(__name__) as k:
        n = rows_var()
        x = k.tensor((n, inputs))
        scores = k.tensor((n, experts))
        ids, count, uses, tokens = union_tensors(k, experts, n)
        w = matrix(k, tiles, weight_format, (experts, expert_size, inputs), tiles.expert_tile(expert_size))
        act = k.tensor((experts, n, expert_size))

        with T.parallel(0, T.cast(count[0], "int64") * w.count) as item:
            place, part = T.bind(T.floordiv(item, w.count)), T.bind(T.floormod(item, w.count))
            expert = T.bind(T.cast(ids[place], "int64"))

            def emit(rows: list[Any]) -> None:
                row_tokens = [T.bind(T.cast(tokens[place, row], "int64")) for row in rows]
                acc = w.registers(len(rows))
                w.accumulate(acc, (expert, part), lambda t, h: x[row_tokens[t], h])
                for row, token, registers in zip(rows, row_tokens, acc):
                    w.finish(registers, part, lambda value, d, lanes: store(
                        act, silu(value, lanes) * splat(scores[token, expert], lanes), place, row, d, lanes=lanes))

            over_token_tiles(T.cast(uses[place], "int64"), w.token_tiles, emit)
    return k.func
