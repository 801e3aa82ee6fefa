"""Attention over the cache, with a prefix of visible slots and an ancestor mask for trees.

A work-group is one token with a few heads that share keys. It walks the slots the token may see in ascending order, a
block at a time: the block is copied to threadgroup memory, once for all its heads, keys and values at once, and a
running softmax weighs its values.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import factory, when
from ..tiles import MAX_TREE_NODES, GpuTiles
from .grid import Local, barrier, float32, kernel, launch, shared, strided
from .latent_query import project
from .matrix import LANES, Row, matrix
from .product import Product, Variant

_LOWEST = -3.0e38


@factory
def attention(tiles: GpuTiles, heads: int, kv_heads: int, slots: int, *, key_dim: int, value_offset: int,
              value_dim: int, width: int, scale: float, cache_dtype: str, v_dim: int = 0,
              weight_format: str = "float32", activations: str = "f32") -> tvm.tirx.PrimFunc:
    """out[t, h] = softmax(scale * q[t, h] . keys) values, over the slots that token t may see; with ``v_dim``,
    v_up[h] of that; parameters as the CPU kernel's. Unseen slots are never read."""
    group = heads // kv_heads
    share = tiles.attention_heads(group)
    with kernel(__name__) as k:
        n = k.rows_var()
        q = k.tensor((n, heads, key_dim))
        kv = k.tensor((slots, kv_heads, width), cache_dtype)
        visible = k.tensor((n,), "int32")
        ancestors = k.tensor((n, 2), "int32")
        past = k.scalar("past")
        v_up = matrix(k, weight_format, (heads, v_dim, value_dim), tiles.output_tile) if v_dim else None
        out = k.tensor((n, heads * (v_dim or value_dim)))

        with launch((heads // share, n), (LANES, tiles.slices)) as ((heads_index, row), (lane, part)):
            item = T.bind(part * LANES + lane)
            first = T.bind(heads_index * share)
            kv_head = T.truncdiv(first, group)
            seen = _SeenSlots(item, visible[row], ancestors, row, past)
            block = _Block(tiles, item, share, key_dim, value_offset, value_dim, width, cache_dtype)
            block.start(lambda head, i: q[row, first + head, i] * T.float32(scale))
            with T.serial(0, T.truncdiv(seen.count + (block.size - 1), block.size)) as b:
                block.add(T.min(seen.count - b * block.size, block.size),
                          lambda j, i: kv[seen.slot(b * block.size + j), kv_head, i])
            if v_up is None:
                block.mix(lambda head, i, value: T.buffer_store(out, value, [row, (first + head) * value_dim + i]))
            else:
                product, mix = Product(tiles, Variant(1), lane, part), shared((share, value_dim))
                barrier()  # everyone is done with the last block, whose memory this may be
                block.mix(lambda head, i, value: T.buffer_store(mix, value, [head, i]))
                barrier()
                with T.serial(0, share) as head:
                    project(product, v_up, (first + head,), [Row(mix, (head,))], lane,
                            lambda t, value, i: T.buffer_store(out, value, [row, (first + head) * v_dim + i]))
    return k.func


class _SeenSlots:
    """The slots a token sees, in order: the visible prefix, then the set bits of its mask. Contains a barrier."""

    def __init__(self, item: Any, prefix: Any, ancestors: T.Buffer, row: Any, past: Any) -> None:
        self._prefix, self._past = T.bind(prefix), past
        words = [T.bind(ancestors[row, i]) for i in range(2)]
        self._nodes = shared((MAX_TREE_NODES,), "int32")
        with when(item == 0):
            found = Local(1, 0, "int32")
            for index, word in enumerate(words):
                with T.serial(0, 32) as bit, when(T.bitwise_and(T.shift_right(word, bit), T.int32(1)) != 0):
                    T.buffer_store(self._nodes, index * 32 + bit, [found[0]])
                    found.add(0, T.int32(1))
        barrier()
        self.count = T.bind(self._prefix + T.popcount(words[0]) + T.popcount(words[1]))

    def slot(self, i: Any) -> Any:
        """The i-th slot seen."""
        node = self._nodes[T.max(i - self._prefix, 0)]
        return T.if_then_else(i < self._prefix, i, self._past + node)


class _Block:
    """Heads that share keys and values, and what they summed up so far. ``size`` rows of the cache at a time."""

    def __init__(self, tiles: GpuTiles, item: Any, heads: int, key_dim: int, value_offset: int, value_dim: int,
                 width: int, dtype: str) -> None:
        self._item, self._items, self._heads = item, tiles.items, heads
        self._key_dim, self._value_offset, self._value_dim, self._width = key_dim, value_offset, value_dim, width
        self.size = tiles.attention_block(width * tvm.DataType(dtype).bits // 8)
        self._parts = tiles.items // self.size  # work-items per score
        self._rows = shared((self.size, width), dtype)
        self._queries = shared((heads, key_dim))
        self._partial = shared((heads, self.size, self._parts))
        self._weights = shared((heads, self.size))  # scores, then their exponentials
        self._mix = Local(heads * -(-value_dim // tiles.items), 0.0)
        self._totals = Local(heads, 0.0)
        self._highest = Local(heads, _LOWEST)

    def start(self, query: Any) -> None:
        """Begin with the queries ``query(head, i)``, which include the softmax's scale."""
        for head in range(self._heads):
            strided(self._item, self._key_dim, self._items,
                    lambda i, head=head: T.buffer_store(self._queries, query(head, i), [head, i]))

    def add(self, count: Any, row: Any) -> None:
        """Attend to ``count`` (1 to ``size``) more rows: ``row(j, i)``. Contains barriers."""
        count = T.bind(count)
        barrier()  # everyone is done with the block before
        strided(self._item, self.size * self._width, self._items, lambda i: self._copy(i, count, row))
        barrier()
        self._score()
        barrier()
        with when(self._item < self._heads * self.size):
            head, j = T.truncdiv(self._item, self.size), T.truncmod(self._item, self.size)
            score = Local(1, 0.0)
            with T.serial(0, self._parts) as part:
                score.add(0, self._partial[head, j, part])
            T.buffer_store(self._weights, T.Select(j < count, score[0], T.float32(_LOWEST)), [head, j])
        barrier()
        self._weigh(count)

    def mix(self, write: Any) -> None:
        """``write(head, i, value)``: the weighed values."""
        for head in range(self._heads):
            for turn in range(-(-self._value_dim // self._items)):
                i = turn * self._items + self._item
                with when(i < self._value_dim):
                    write(head, i, self._mix[self._place(head, turn)] / self._totals[head])

    def _place(self, head: int, turn: int) -> int:
        return head * -(-self._value_dim // self._items) + turn

    def _copy(self, i: Any, count: Any, row: Any) -> None:
        j, column = T.truncdiv(i, self._width), T.truncmod(i, self._width)
        with when(j < count):
            T.buffer_store(self._rows, row(j, column), [j, column])

    def _score(self) -> None:
        """Partial products of every key with every head: a work-item takes every ``parts``-th dim of one key."""
        j, part = T.truncdiv(self._item, self._parts), T.truncmod(self._item, self._parts)
        sums = Local(self._heads, 0.0)

        def dim(i: Any) -> None:
            key = T.bind(float32(self._rows[j, i]))
            for head in range(self._heads):
                sums.add(head, key * self._queries[head, i])

        strided(part, self._key_dim, self._parts, dim)
        for head in range(self._heads):
            T.buffer_store(self._partial, sums[head], [head, j, part])

    def _weigh(self, count: Any) -> None:
        """Every work-item finds the block's highest score and adds the values of its own columns."""
        for head in range(self._heads):
            top = Local(1, self._highest[head])
            with T.serial(0, self.size) as j:
                top.set(0, T.max(top[0], self._weights[head, j]))
            factor = T.bind(T.exp(self._highest[head] - top[0]))
            self._highest.set(head, top[0])
            self._totals.set(head, self._totals[head] * factor)
            turns = range(-(-self._value_dim // self._items))
            for turn in turns:
                place = self._place(head, turn)
                self._mix.set(place, self._mix[place] * factor)
            with T.serial(0, count) as j:
                weight = T.bind(T.exp(self._weights[head, j] - top[0]))
                self._totals.add(head, weight)
                for turn in turns:
                    i = turn * self._items + self._item
                    value = T.min(self._value_offset + i, self._width - 1)  # columns behind the last are not kept
                    self._mix.add(self._place(head, turn), weight * float32(self._rows[j, value]))
