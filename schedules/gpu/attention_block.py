"""Attention of a few heads to rows of keys and values that come a block at a time: a running softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import when
from ..tiles import GpuTiles
from .grid import Local, barrier, float32, shared, strided

_LOWEST = -3.0e38
_UNSEEN = -3.4e38  # so far below the former that its exponential is 0 where nothing was seen yet


class Block:
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
        self._scores = shared((heads, self.size))
        self._mix = Local(heads * -(-value_dim // tiles.items), 0.0)
        self._totals = Local(heads, 0.0)
        self._highest = Local(heads, _LOWEST)

    def start(self, query: Any) -> None:
        """Begin with the queries ``query(head, i)``, which include the softmax's scale."""
        for head in range(self._heads):
            strided(self._item, self._key_dim, self._items,
                    lambda i, head=head: T.buffer_store(self._queries, query(head, i), [head, i]))

    def add(self, count: Any, row: Any, seen: Callable[[Any], Any] = lambda j: T.bool(True)) -> None:
        """Attend to those of ``count`` (1 to ``size``) more rows, ``row(j, i)``, that ``seen(j)`` holds for. Contains
        barriers."""
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
            T.buffer_store(self._scores, T.Select(T.And(j < count, seen(j)), score[0], T.float32(_UNSEEN)), [head, j])
        barrier()
        self._weigh(count)

    def mix(self, write: Any) -> None:
        """``write(head, i, value)``: the weighed values."""
        for head in range(self._heads):
            for turn in range(-(-self._value_dim // self._items)):
                i = turn * self._items + self._item
                with when(i < self._value_dim):
                    write(head, i, self._mix[self._place(head, turn)] / self._totals[head])

    def sums(self, head: int) -> tuple[Any, Any]:
        """The highest score of what was seen, and the sum of the exponentials of their distances to it; an item's own
        copies. Of nothing: something very low, and 0."""
        return self._highest[head], self._totals[head]

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
                top.set(0, T.max(top[0], self._scores[head, j]))
            factor = T.bind(T.exp(self._highest[head] - top[0]))
            self._highest.set(head, top[0])
            self._totals.set(head, self._totals[head] * factor)
            turns = range(-(-self._value_dim // self._items))
            for turn in turns:
                place = self._place(head, turn)
                self._mix.set(place, self._mix[place] * factor)
            with T.serial(0, count) as j:
                weight = T.bind(T.exp(self._scores[head, j] - top[0]))
                self._totals.add(head, weight)
                for turn in turns:
                    i = turn * self._items + self._item
                    value = T.min(self._value_offset + i, self._width - 1)  # columns behind the last are not kept
                    self._mix.add(self._place(head, turn), weight * float32(self._rows[j, value]))
