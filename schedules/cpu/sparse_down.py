"""Down projection of the active experts, summed over experts into the residual stream."""

from __future__ import annotations

from functools import cache

import tvm
from tvm.script.ir_builder import tirx as T

from ..tiles import UNION_CHUNK, CpuTiles
from .linear import accumulate, clamp_row, tile_registers, tile_rows
from .union import union_chunks
from .vector import by_tokens, kernel, load, rows_var, splat, store, when


@cache
def sparse_down(tiles: CpuTiles, experts: int, outputs: int, expert_size: int, dtype: str,
                residual_scale: float) -> tvm.tirx.PrimFunc:
    """y[t, h] = residual[t, h] + residual_scale * sum_i sum_d act[t, i, d] * w[e, h, d], e = ids[chunk(t), i].

    Parameters: act f32 [n, experts, expert_size] as sparse_up leaves it; ids int32 [chunks, experts]; counts int32
    [chunks]; w ``dtype`` [experts, outputs/tile, expert_size, tile]; residual f32 [n, outputs]; y f32
    [n, outputs]. Experts ascend, so that each output is one chain of fma: an expert of the union that
    is inactive for a token adds an exact zero to it.
    """
    tile = tiles.output_tile
    with kernel(__name__) as k:
        n = rows_var()
        act = k.tensor((n, experts, expert_size))
        ids = k.tensor((union_chunks(n), experts), "int32")
        counts = k.tensor((union_chunks(n),), "int32")
        w = k.tensor((experts, outputs // tile, expert_size, tile), dtype)
        residual = k.tensor((n, outputs))
        y = k.tensor((n, outputs))

        def emit(token_tile: int) -> None:
            with T.serial(0, union_chunks(n)) as chunk, T.parallel(0, outputs // tile) as index:
                with T.serial(0, tile_rows(T.min(n - chunk * UNION_CHUNK, UNION_CHUNK), token_tile)) as part:
                    block = chunk * (UNION_CHUNK // token_tile) + part
                    acc = tile_registers(tiles, token_tile, tile)
                    with T.serial(0, T.cast(counts[chunk], "int64")) as slot:
                        expert = T.cast(ids[chunk, slot], "int64")
                        accumulate(
                            acc, expert_size,
                            lambda t, d: act[clamp_row(block, t, token_tile, n), slot, d],
                            lambda d, start, lanes: load(w, expert, index, d, start, lanes=lanes))
                    for t, registers in enumerate(acc):
                        row = block * token_tile + t
                        with when(row < n):
                            for j, register in enumerate(registers):
                                lanes, column = register.lanes, index * tile + j * register.lanes
                                value = T.fma(splat(residual_scale, lanes), register.get(),
                                              load(residual, row, column, lanes=lanes))
                                store(y, value, row, column, lanes=lanes)

        by_tokens(n, tiles.token_tiles, emit)
    return k.func
