"""Down projection of the active experts, summed over experts into the residual stream."""

from __future__ import annotations

from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import factory, kernel
from ..tiles import CpuTiles
from ..union import union_tensors
from .matrix import matrix
from .rows import rows
from .vector import load, over_token_tiles, splat, store


@factory
def sparse_down(tiles: CpuTiles, experts: int, outputs: int, expert_size: int, weight_format: str,
                residual_scale: float, activations: str = "f32") -> tvm.tirx.PrimFunc:
    """y[t, h] = residual[t, h] + residual_scale * sum_i sum_d act[i, j, d] * w[e, h, d], e = ids[i], t = tokens[i, j].

    Parameters: act [experts, n, expert_size] as sparse_up leaves it; ids, count, uses, tokens as ``union``
    leaves them; w [experts, outputs, expert_size] stored as ``weight_format``; residual f32 [n, outputs]; y f32
    [n, outputs], which holds the partial sums meanwhile. Experts ascend, so that each output is one chain of
    fma; leaving out an inactive expert is the same as adding its exact zero.
    """
    with kernel(__name__) as k:
        n = k.rows_var()
        act = rows(k, tiles, activations, (experts, n), expert_size)
        ids, count, uses, tokens = union_tensors(k, experts, n)
        w = matrix(k, tiles, weight_format, (experts, outputs, expert_size), tiles.output_tile, activations)
        residual = k.tensor((n, outputs))
        y = k.tensor((n, outputs))
        lanes = w.lanes

        def columns(part: Any) -> list[Any]:
            return [part * w.tile + start for start in range(0, w.tile, lanes)]

        def over_slice(first: Any, last: Any, body: Any) -> None:
            with T.serial(0, n) as row, T.serial(first, last) as part:
                for column in columns(part):
                    store(y, body(row, column), row, column, lanes=lanes)

        # Few tokens: a slice of many tiles reads long runs of each expert. Many: one tile's sums stay in the L1 cache.
        slices = T.bind(T.if_then_else(n <= tiles.stream_tokens, T.int64(min(tiles.down_slices, w.count)),
                                       T.int64(w.count)))
        with T.parallel(0, slices) as item:
            first, last = (T.bind(T.floordiv(i * w.count, slices)) for i in (item, item + 1))
            over_slice(first, last, lambda row, column: splat(0.0, lanes))
            with T.serial(0, T.cast(count[0], "int64")) as place, T.serial(first, last) as part:
                expert = T.bind(T.cast(ids[place], "int64"))
                # What the next expert needs is fetched; this expert's tiles follow each other, as prefetchers expect.
                following = T.bind(T.cast(ids[T.min(place + 1, T.cast(count[0] - 1, "int64"))], "int64"))

                def emit(tile: list[Any]) -> None:
                    tile_tokens = [T.bind(T.cast(tokens[place, row], "int64")) for row in tile]
                    acc = w.registers(len(tile))
                    for token, registers in zip(tile_tokens, acc):
                        for register, column in zip(registers, columns(part)):
                            register.set(load(y, token, column, lanes=lanes))
                    w.accumulate(acc, (expert, part), [act.row(place, row) for row in tile],
                                 (following, part))
                    for token, registers in zip(tile_tokens, acc):
                        for register, column in zip(registers, columns(part)):
                            store(y, register.get(), token, column, lanes=lanes)

                over_token_tiles(T.cast(uses[place], "int64"), w.token_tiles, emit)
            over_slice(first, last, lambda row, column: T.fma(
                splat(residual_scale, lanes), load(y, row, column, lanes=lanes),
                load(residual, row, column, lanes=lanes)))
    return k.func
