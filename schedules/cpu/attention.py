"""Attention over the cache, with a prefix of visible slots and an ancestor mask for trees.

An item of work is one token with a few heads that share keys. It walks the slots the token may see in
ascending order, in blocks copied to float32 once for all its heads.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..tiles import MAX_TREE_NODES, CpuTiles
from .vector import Register, exp, for_lanes, kernel, load, rows_var, span, splat, store, when

_LOWEST = -3.0e38


@cache
def attention(tiles: CpuTiles, heads: int, kv_heads: int, slots: int, *, key_dim: int, value_offset: int,
              value_dim: int, width: int, scale: float, cache_dtype: str) -> tvm.tirx.PrimFunc:
    """out[t, h] = softmax(scale * q[t, h] . keys) values, over the slots that token t may see.

    Parameters: q f32 [n, heads, key_dim]; cache ``cache_dtype`` [slots, kv_heads, width], key at column 0,
    value at ``value_offset`` (MLA: both are the latent); visible int32 [n]: slots 0..visible-1 are seen;
    ancestors int32 [n, 2]: bit b shows slot past+b too; past; out f32 [n, heads*value_dim].
    Unseen slots are never read, so a token's result does not depend on its neighbours: maximum first,
    then sums in key order.
    """
    group = heads // kv_heads
    splits = 2 if kv_heads == 1 and heads > 1 else 1  # one token alone must occupy two threads
    share = -(-group // splits)  # heads of an item
    block = tiles.key_block
    with kernel(__name__) as k:
        n = rows_var()
        q = k.tensor((n, heads, key_dim))
        kv = k.tensor((slots, kv_heads, width), cache_dtype)
        visible = k.tensor((n,), "int32")
        ancestors = k.tensor((n, 2), "int32")
        past = k.scalar("past")
        out = k.tensor((n, heads * value_dim))

        with T.parallel(0, n * (kv_heads * splits)) as item:
            row, part = T.floordiv(item, kv_heads * splits), T.floormod(item, kv_heads * splits)
            kv_head = T.floordiv(part, splits)
            first = kv_head * group + T.floormod(part, splits) * share
            own = T.min(T.int64(share), (kv_head + 1) * group - first)
            seen = _SeenSlots(T.cast(visible[row], "int64"), ancestors, row, past)
            padded = -(-slots // block) * block
            scores = T.alloc_buffer((share, padded), "float32")
            rows = T.alloc_buffer((block, max(key_dim, value_dim)), "float32")

            def copy_block(start: Any, column: int, columns: int) -> None:
                with T.serial(0, T.min(seen.count - start, T.int64(block))) as j:
                    slot = T.bind(seen.slot(start + j))
                    for_lanes(columns, tiles.lanes, lambda i, lanes: store(
                        rows, load(kv, slot, kv_head, column + i, lanes=lanes), j, i, lanes=lanes))

            with T.serial(0, _blocks(seen.count, block)) as b:
                copy_block(b * block, 0, key_dim)
                with T.serial(0, own) as head, T.serial(0, block // tiles.key_tile) as j:
                    _scores(tiles, key_dim, scale, q, row, first + head, rows, j * tiles.key_tile,
                            lambda i, score: T.buffer_store(scores, score, [head, b * block + i]))
            with T.serial(0, own) as head:
                _exponentials(tiles, scores, head, seen.count, padded)
                for_lanes(value_dim, tiles.lanes, lambda i, lanes: store(
                    out, splat(0.0, lanes), row, (first + head) * value_dim + i, lanes=lanes))
            with T.serial(0, _blocks(seen.count, block)) as b:
                copy_block(b * block, value_offset, value_dim)
                valid = T.min(seen.count - b * block, T.int64(block))
                with T.serial(0, own) as head:
                    _add_values(tiles, value_dim, valid, lambda j: scores[head, b * block + j], rows,
                                out, row, (first + head) * value_dim)
            with T.serial(0, own) as head:
                total = _total(scores, head, seen.count)
                for_lanes(value_dim, tiles.lanes, lambda i, lanes: store(
                    out, load(out, row, (first + head) * value_dim + i, lanes=lanes) / splat(total.get(), lanes),
                    row, (first + head) * value_dim + i, lanes=lanes))
    return k.func


class _SeenSlots:
    """The slots a token sees, in order: the visible prefix, then the set bits of its mask."""

    def __init__(self, prefix: Any, ancestors: Any, row: Any, past: Any) -> None:
        self._prefix, self._past = prefix, past
        self._nodes = T.alloc_buffer((MAX_TREE_NODES,), "int32")
        found = T.alloc_buffer((1,), "int32")
        T.buffer_store(found, T.int32(0), [0])
        T.buffer_store(self._nodes, T.int32(0), [0])
        any_node = T.bitwise_or(ancestors[row, 0], ancestors[row, 1]) != 0
        with when(any_node), T.serial(0, MAX_TREE_NODES) as bit:
            word = T.shift_right(ancestors[row, T.floordiv(bit, 32)], T.cast(T.floormod(bit, 32), "int32"))
            with when(T.bitwise_and(word, T.int32(1)) != 0):
                T.buffer_store(self._nodes, T.cast(bit, "int32"), [found[0]])
                T.buffer_store(found, found[0] + 1, [0])
        self.count = T.bind(prefix + T.cast(found[0], "int64"))

    def slot(self, i: Any) -> Any:
        """The i-th slot seen."""
        node = self._nodes[T.max(i - self._prefix, T.int64(0))]
        return T.if_then_else(i < self._prefix, i, self._past + T.cast(node, "int64"))


def _blocks(count: Any, block: int) -> Any:
    return T.floordiv(count + (block - 1), block)


def _scores(tiles: CpuTiles, key_dim: int, scale: float, q: Any, row: Any, head: Any, rows: Any, first: Any,
            write: Any) -> None:
    """write(i, scale * q . rows[i]) for key_tile rows; each dot product has its own fixed order."""
    tile = range(tiles.key_tile)
    whole, rest = [Register(tiles.lanes) for _ in tile], [Register(1) for _ in tile]

    def add(i: Any, lanes: int) -> None:
        query = load(q, row, head, i, lanes=lanes)
        for j in tile:
            (whole if lanes == tiles.lanes else rest)[j].fma(query, load(rows, first + j, i, lanes=lanes))

    for_lanes(key_dim, tiles.lanes, add)
    for j in tile:
        write(first + j, (whole[j].sum() + rest[j].get()) * T.float32(scale))


def _exponentials(tiles: CpuTiles, scores: Any, head: Any, count: Any, padded: int) -> None:
    """scores[head, :count] = exp(scores - their maximum)."""
    lanes = tiles.lanes
    with T.serial(count, T.min(_blocks(count, lanes) * lanes, T.int64(padded))) as i:
        T.buffer_store(scores, T.float32(_LOWEST), [head, i])
    top = Register(lanes, _LOWEST)
    with T.serial(0, _blocks(count, lanes)) as i:
        top.set(T.max(top.get(), load(scores, head, i * lanes, lanes=lanes)))
    highest = Register(1, top.lane(0))
    for lane in range(1, lanes):
        highest.set(T.max(highest.get(), top.lane(lane)))
    with T.serial(0, _blocks(count, lanes)) as i:
        shifted = scores[head, span(i * lanes, lanes)] - splat(highest.get(), lanes)
        store(scores, exp(shifted, lanes), head, i * lanes, lanes=lanes)


def _total(scores: Any, head: Any, count: Any) -> Register:
    total = Register(1)
    with T.serial(0, count) as i:
        total.set(total.get() + scores[head, i])
    return total


def _add_values(tiles: CpuTiles, value_dim: int, valid: Any, weight: Any, rows: Any, out: Any, row: Any,
                column: Any) -> None:
    """out[row, column:] += sum_j weight(j) * rows[j], as many columns at a time as registers hold."""
    block = tiles.value_vectors * tiles.lanes

    def columns(first: Any, widths: list[int]) -> None:
        starts = [first + sum(widths[:j]) for j in range(len(widths))]
        acc = [Register(lanes, load(out, row, column + start, lanes=lanes)) for lanes, start in zip(widths, starts)]
        with T.serial(0, valid) as j:
            for register, start in zip(acc, starts):
                register.fma(splat(weight(j), register.lanes), load(rows, j, start, lanes=register.lanes))
        for register, start in zip(acc, starts):
            store(out, register.get(), row, column + start, lanes=register.lanes)

    for_lanes(value_dim // block * block, block, lambda start, _: columns(start, [tiles.lanes] * tiles.value_vectors))
    rest = value_dim % block
    if rest:
        columns(value_dim - rest, [tiles.lanes] * (rest // tiles.lanes) + [1] * (rest % tiles.lanes))
