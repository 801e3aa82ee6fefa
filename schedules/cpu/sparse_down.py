"""Down projection of the active experts, summed over experts into the residual stream."""

from __future__ import annotations

from functools import cache
from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..tiles import CpuTiles
from .matrix import matrix
from .union import union_tensors
from .vector import kernel, load, over_token_tiles, rows_var, splat, store


@cache
def sparse_down(tiles: CpuTiles, experts: int, outputs: int, expert_size: int, weight_format: str,
                residual_scale: float) -> tvm.tirx.PrimFunc:
    """y[t, h] = residual[t, h] + residual_scale * sum_i sum_d act[i, j, d] * w[e, h, d], e = ids[i], t = tokens[i, j].

    Parameters: act f32 [experts, n, expert_size] as sparse_up leaves it; ids, count, uses, tokens as ``union``
    leaves them; w [experts, outputs, expert_size] stored as ``weight_format``; residual f32 [n, outputs]; y f32
    [n, outputs], which holds the partial sums meanwhile. Experts ascend, so that each output is one chain of
    fma; leaving out an inactive expert is the same as adding its exact zero.
    """
    with kernel(__name__) as k:
        n = rows_var()
        act = k.tensor((experts, n, expert_size))
        ids, count, uses, tokens = union_tensors(k, experts, n)
        w = matrix(k, tiles, weight_format, (experts, outputs, expert_size), tiles.output_tile)
        residual = k.tensor((n, outputs))
        y = k.tensor((n, outputs))
        lanes = w.lanes

        with T.parallel(0, T.int64(w.count)) as part:
            columns = [part * w.tile + start for start in range(0, w.tile, lanes)]
            with T.serial(0, n) as row:
                for column in columns:
                    store(y, splat(0.0, lanes), row, column, lanes=lanes)
            with T.serial(0, T.cast(count[0], "int64")) as place:
                expert = T.bind(T.cast(ids[place], "int64"))

                def emit(rows: list[Any]) -> None:
                    row_tokens = [T.bind(T.cast(tokens[place, row], "int64")) for row in rows]
                    acc = w.registers(len(rows))
                    for token, registers in zip(row_tokens, acc):
                        for register, column in zip(registers, columns):
                            register.set(load(y, token, column, lanes=lanes))
                    w.accumulate(acc, (expert, part), lambda t, d: act[place, rows[t], d])
                    for token, registers in zip(row_tokens, acc):
                        for register, column in zip(registers, columns):
                            store(y, register.get(), token, column, lanes=lanes)

                over_token_tiles(T.cast(uses[place], "int64"), w.token_tiles, emit)
            with T.serial(0, n) as row:
                for column in columns:
                    value = T.fma(splat(residual_scale, lanes), load(y, row, column, lanes=lanes),
                                  load(residual, row, column, lanes=lanes))
                    store(y, value, row, column, lanes=lanes)
    return k.func
