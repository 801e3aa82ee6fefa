"""Up projection of the active experts, with SiLU and the router's score in its epilogue."""

from __future__ import annotations

from functools import cache
from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..tiles import UNION_CHUNK, CpuTiles
from .linear import clamp_row, dot_tile, tile_rows
from .union import union_chunks
from .vector import by_tokens, kernel, load, rows_var, silu, splat, store, when


@cache
def sparse_up(tiles: CpuTiles, experts: int, inputs: int, expert_size: int, dtype: str) -> tvm.tirx.PrimFunc:
    """act[t, i, d] = silu(sum_h x[t, h] * w[e, d, h]) * scores[t, e] with e = ids[chunk(t), i], i < counts.

    Parameters: x f32 [n, inputs]; scores f32 [n, experts]; ids int32 [chunks, experts]; counts int32
    [chunks]; w ``dtype`` [experts, expert_size/tile, inputs, tile]; act f32 [n, experts, expert_size],
    indexed by place in the union (the numpy twin: by expert), of which only the places i < counts are
    written. Weights of experts not listed are never read.
    """
    tile = tiles.expert_tile(expert_size)
    count = expert_size // tile
    with kernel(__name__) as k:
        n = rows_var()
        x = k.tensor((n, inputs))
        scores = k.tensor((n, experts))
        ids = k.tensor((union_chunks(n), experts), "int32")
        counts = k.tensor((union_chunks(n),), "int32")
        w = k.tensor((experts, count, inputs, tile), dtype)
        act = k.tensor((n, experts, expert_size))

        def emit(token_tile: int) -> None:
            with T.serial(0, union_chunks(n)) as chunk:
                with T.parallel(0, T.cast(counts[chunk], "int64") * count) as item:
                    slot, index = T.floordiv(item, count), T.floormod(item, count)
                    expert = T.cast(ids[chunk, slot], "int64")
                    with T.serial(0, tile_rows(T.min(n - chunk * UNION_CHUNK, UNION_CHUNK), token_tile)) as part:
                        block = chunk * (UNION_CHUNK // token_tile) + part
                        acc = dot_tile(
                            tiles, token_tile, tile, inputs,
                            lambda t, h: x[clamp_row(block, t, token_tile, n), h],
                            lambda h, start, lanes: load(w, expert, index, h, start, lanes=lanes))
                        for t, registers in enumerate(acc):
                            row = block * token_tile + t
                            with when(row < n):
                                for j, register in enumerate(registers):
                                    finish(register, row, slot, expert, index * tile + j * register.lanes)

        def finish(register: Any, row: Any, slot: Any, expert: Any, column: Any) -> None:
            lanes = register.lanes
            value = silu(register.get(), lanes) * splat(scores[row, expert], lanes)
            store(act, value, row, slot, column, lanes=lanes)

        by_tokens(n, tiles.token_tiles, emit)
    return k.func
