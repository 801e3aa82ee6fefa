"""Up projection of the active experts, with SiLU and the router's score in its epilogue."""

from __future__ import annotations

from functools import cache
from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..tiles import CpuTiles
from .linear import accumulate, tile_registers
from .vector import kernel, load, over_token_tiles, rows_var, silu, splat, store


@cache
def sparse_up(tiles: CpuTiles, experts: int, inputs: int, expert_size: int, dtype: str) -> tvm.tirx.PrimFunc:
    """act[i, j, d] = silu(sum_h x[t, h] * w[e, d, h]) * scores[t, e] with e = ids[i], t = tokens[i, j].

    Parameters: x f32 [n, inputs]; scores f32 [n, experts]; ids, count, uses, tokens as ``union`` leaves them;
    w ``dtype`` [experts, expert_size/tile, inputs, tile]; act f32 [experts, n, expert_size], by place i in the
    union and j among the expert's tokens (the numpy twin: by token and expert), of which only the places
    i < count, j < uses[i] are written. Only active pairs of token and expert are computed; weights of experts
    outside the union are never read.
    """
    tile = tiles.expert_tile(expert_size)
    parts = expert_size // tile
    with kernel(__name__) as k:
        n = rows_var()
        x = k.tensor((n, inputs))
        scores = k.tensor((n, experts))
        ids = k.tensor((experts,), "int32")
        count = k.tensor((1,), "int32")
        uses = k.tensor((experts,), "int32")
        tokens = k.tensor((experts, n), "int32")
        w = k.tensor((experts, parts, inputs, tile), dtype)
        act = k.tensor((experts, n, expert_size))

        with T.parallel(0, T.cast(count[0], "int64") * parts) as item:
            place, part = T.bind(T.floordiv(item, parts)), T.bind(T.floormod(item, parts))
            expert = T.bind(T.cast(ids[place], "int64"))

            def emit(rows: list[Any]) -> None:
                row_tokens = [T.bind(T.cast(tokens[place, row], "int64")) for row in rows]
                acc = tile_registers(tiles, len(rows), tile)
                accumulate(acc, inputs, lambda t, h: x[row_tokens[t], h],
                           lambda h, start, lanes: load(w, expert, part, h, start, lanes=lanes))
                for row, token, registers in zip(rows, row_tokens, acc):
                    for j, register in enumerate(registers):
                        lanes = register.lanes
                        value = silu(register.get(), lanes) * splat(scores[token, expert], lanes)
                        store(act, value, place, row, part * tile + j * lanes, lanes=lanes)

            over_token_tiles(T.cast(uses[place], "int64"), tiles.token_tiles, emit)
    return k.func
