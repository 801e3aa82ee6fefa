"""Up projection of the active experts, with SiLU and the router's score in its epilogue."""

from __future__ import annotations

from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import factory, kernel
from ..tiles import CpuTiles
from ..union import union_tensors
from .matrix import matrix
from .rows import rows
from .vector import over_token_tiles, silu, splat


@factory
def sparse_up(tiles: CpuTiles, experts: int, inputs: int, expert_size: int, weight_format: str,
              activations: str = "f32") -> tvm.tirx.PrimFunc:
    """act[i, j, d] = silu(sum_h x[t, h] * w[e, d, h]) * scores[t, e] with e = ids[i], t = tokens[i, j].

    Parameters: x [n, inputs] as ``activations``; scores f32 [n, experts]; ids, count, uses, tokens as ``union`` leaves
    them; w [experts, expert_size, inputs] stored as ``weight_format``; act [experts, n, expert_size] as ``activations``
    too, by place i in the union and j among the expert's tokens (the numpy twin: by token and expert), of which only
    the places i < count, j < uses[i] are written. Only active pairs of token and expert are computed; weights of
    experts outside the union are never read.
    """
    with kernel(__name__) as k:
        n = k.rows_var()
        x = rows(k, tiles, activations, (n,), inputs)
        scores = k.tensor((n, experts))
        ids, count, uses, tokens = union_tensors(k, experts, n)
        w = matrix(k, tiles, weight_format, (experts, expert_size, inputs), tiles.expert_tile(expert_size),
                   activations)
        act = rows(k, tiles, activations, (experts, n), expert_size)
        union_size = T.cast(count[0], "int64")

        # Few tokens: an expert's tiles follow each other, as they lie in memory. Many: all experts' first tiles, then
        # all their second ones, so that threads stay balanced where experts differ in tokens.
        items = T.bind(union_size * w.count)
        expert_major = T.bind(n <= tiles.stream_tokens)

        def place_and_part(item: Any) -> tuple[Any, Any]:
            return (T.bind(T.if_then_else(expert_major, T.floordiv(item, w.count), T.floormod(item, union_size))),
                    T.bind(T.if_then_else(expert_major, T.floormod(item, w.count), T.floordiv(item, union_size))))

        with T.parallel(0, items) as item:
            place, part = place_and_part(item)
            expert = T.bind(T.cast(ids[place], "int64"))
            next_place, next_part = place_and_part(T.min(item + 1, items - 1))
            ahead = T.bind(T.cast(ids[next_place], "int64")), next_part

            def emit(tile: list[Any]) -> None:
                tile_tokens = [T.bind(T.cast(tokens[place, row], "int64")) for row in tile]
                acc = w.registers(len(tile))
                w.accumulate(acc, (expert, part), [x.row(token) for token in tile_tokens], ahead)
                for row, token, registers in zip(tile, tile_tokens, acc):
                    act.write_tile((place, row), w, registers, part, lambda value, lanes: silu(
                        value, lanes) * splat(scores[token, expert], lanes))

            over_token_tiles(T.cast(uses[place], "int64"), w.token_tiles, emit)
    return k.func
