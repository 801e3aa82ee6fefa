"""Attention over the cache, with a prefix of visible slots and an ancestor mask for trees."""

from __future__ import annotations

from functools import cache
from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..tiles import MAX_TREE_NODES, CpuTiles
from .vector import Register, exp, for_lanes, kernel, load, rows_var, span, splat, store, sum_over, when


@cache
def attention(tiles: CpuTiles, heads: int, kv_heads: int, slots: int, *, key_dim: int, value_offset: int,
              value_dim: int, width: int, scale: float, cache_dtype: str) -> tvm.tirx.PrimFunc:
    """out[t, h] = softmax(scale * q[t, h] . keys) values, over the slots that token t may see.

    Parameters: q f32 [n, heads, key_dim]; cache ``cache_dtype`` [slots, kv_heads, width], key at column 0,
    value at ``value_offset`` (MLA: both are the latent); visible int32 [n]: slots 0..visible-1 are seen;
    ancestors int32 [n, 2]: bit b shows slot past+b too; past; out f32 [n, heads*value_dim].
    Seen slots are visited in ascending order and others not at all, so a token's result does not
    depend on its neighbours: maximum first, then sums in key order.
    """
    with kernel(__name__) as k:
        n = rows_var()
        q = k.tensor((n, heads, key_dim))
        kv = k.tensor((slots, kv_heads, width), cache_dtype)
        visible = k.tensor((n,), "int32")
        ancestors = k.tensor((n, 2), "int32")
        past = k.scalar("past")
        out = k.tensor((n, heads * value_dim))

        with T.parallel(0, n * heads) as item:
            row, head = T.floordiv(item, heads), T.floormod(item, heads)
            group = T.floordiv(head, heads // kv_heads)
            prefix = T.cast(visible[row], "int64")
            tree = T.alloc_buffer((MAX_TREE_NODES,), "int32")
            count = prefix + _ancestor_slots(tree, ancestors, row, n)
            scores = T.alloc_buffer((slots + tiles.lanes,), "float32")
            top = Register(1, T.float32(-3.0e38))

            def slot(i: Any) -> Any:
                node = tree[T.max(i - prefix, T.int64(0))]
                return T.if_then_else(i < prefix, i, past + T.cast(node, "int64"))

            with T.serial(0, count) as i:
                score = scale * _dot(tiles, key_dim, lambda start, lanes: load(q, row, head, start, lanes=lanes),
                                     lambda start, lanes: load(kv, slot(i), group, start, lanes=lanes))
                T.buffer_store(scores, score, [i])
                top.set(T.max(top.get(), scores[i]))
            with T.serial(0, T.floordiv(count + (tiles.lanes - 1), tiles.lanes)) as i:
                start, lanes = i * tiles.lanes, tiles.lanes
                shifted = scores[span(start, lanes)] - splat(top.get(), lanes)
                T.buffer_store(scores, exp(shifted, lanes), [span(start, lanes)])
            _weighted_values(tiles, value_dim, count, scores,
                             lambda i, start, lanes: load(kv, slot(i), group, value_offset + start, lanes=lanes),
                             lambda value, start, lanes: store(out, value, row, head * value_dim + start, lanes=lanes))
    return k.func


def _ancestor_slots(tree: Any, ancestors: Any, row: Any, n: Any) -> Any:
    """Write the set bits of a token's mask to ``tree``, ascending; return how many there are."""
    found = T.alloc_buffer((1,), "int32")
    T.buffer_store(found, T.int32(0), [0])
    T.buffer_store(tree, T.int32(0), [0])
    with when(T.bitwise_or(ancestors[row, 0], ancestors[row, 1]) != 0):
        with T.serial(0, T.min(n, MAX_TREE_NODES)) as bit:
            word = T.shift_right(ancestors[row, T.floordiv(bit, 32)], T.cast(T.floormod(bit, 32), "int32"))
            with when(T.bitwise_and(word, T.int32(1)) != 0):
                T.buffer_store(tree, T.cast(bit, "int32"), [found[0]])
                T.buffer_store(found, found[0] + 1, [0])
    return T.cast(found[0], "int64")


def _dot(tiles: CpuTiles, width: int, a: Any, b: Any) -> Any:
    return sum_over(width, tiles.lanes, lambda i, lanes, total: total.fma(a(i, lanes), b(i, lanes)))


def _weighted_values(tiles: CpuTiles, value_dim: int, count: Any, weights: Any, value: Any, write: Any) -> None:
    """write(sum_i weights[i] * value(i) / sum_i weights[i]), as many columns at a time as registers hold."""
    block = tiles.value_vectors * tiles.lanes

    def columns(first: Any, widths: list[int]) -> None:
        starts = [sum(widths[:j]) for j in range(len(widths))]
        acc = [Register(lanes) for lanes in widths]
        total = Register(1)
        with T.serial(0, count) as i:
            weight = weights[i]
            total.set(total.get() + weight)
            for register, start in zip(acc, starts):
                register.fma(splat(weight, register.lanes), value(i, first + start, register.lanes))
        for register, start in zip(acc, starts):
            write(register.get() / splat(total.get(), register.lanes), first + start, register.lanes)

    for_lanes(value_dim // block * block, block, lambda start, _: columns(start, [tiles.lanes] * tiles.value_vectors))
    rest = value_dim % block
    if rest:
        columns(value_dim - rest, [tiles.lanes] * (rest // tiles.lanes) + [1] * (rest % tiles.lanes))
