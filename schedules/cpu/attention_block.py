"""One step of attention: heads that share keys against a block of cached rows, with a running softmax.

Register tiles are heads x keys for the scores and heads x vectors for the values. Neither they nor the number
of heads change a result: a score has an order fixed by the key's length, values are added in the order of keys.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script.ir_builder import tirx as T

from ..builder import when
from ..tiles import CpuTiles
from .vector import Read, Register, exp, for_lanes, load, splat, store, sums

BLOCK = 32  # rows per step of the running softmax: a part of the result, hence the same for every processor
_LOWEST = -3.0e38


class HeadGroup:
    """Heads that share keys and values. Buffers are padded to whole vectors. ``mix`` [heads, >= value_dim] is the
    sum of the values weighed so far, to be divided by ``total``."""

    def __init__(self, tiles: CpuTiles, heads: int, key_dim: int, value_offset: int, value_dim: int) -> None:
        self._tiles, self._lanes, self._heads = tiles, tiles.lanes, heads
        self._key_dim, self._value_offset = key_dim, value_offset
        self._key_only = [(start, end) for start, end in ((0, min(key_dim, value_offset)),
                                                          (value_offset + value_dim, key_dim)) if start < end]
        self._columns = max(key_dim, value_offset + value_dim)
        self._key_vectors, self._value_vectors = (-(-dim // self._lanes) for dim in (key_dim, value_dim))
        key_width, value_width = self._key_vectors * self._lanes, self._value_vectors * self._lanes
        self._width = max(key_width, value_offset + value_width)
        self._queries = T.alloc_buffer((heads, key_width), "float32")
        self._rows = T.alloc_buffer((BLOCK, self._width), "float32")
        self._weights = T.alloc_buffer((heads, BLOCK), "float32")  # scores, then their exponentials
        self._top = T.alloc_buffer((heads,), "float32")  # highest score so far
        self._totals = T.alloc_buffer((heads, self._lanes), "float32")
        self.mix = T.alloc_buffer((heads, value_width), "float32")

    def start(self, query: Callable[[Any], Read]) -> None:
        """Begin with the queries ``query(head)``, which include the softmax's scale."""
        key_width, value_width = self._key_vectors * self._lanes, self._value_vectors * self._lanes
        with T.serial(0, self._heads) as head:
            self._fill(self._queries, head, key_width, _zero)
            self._fill(self._queries, head, self._key_dim, query(head))
            self._fill(self.mix, head, value_width, _zero)
            self._fill(self._totals, head, self._lanes, _zero)
            T.buffer_store(self._top, T.float32(_LOWEST), [head])
        if self._columns < self._width:  # padding meets a zero of the query: it must not be NaN
            with T.serial(0, BLOCK) as j:
                self._fill(self._rows, j, self._width, _zero)

    def add(self, count: Any, row: Callable[[Any], Read], fetch: Callable[[Any, Any, int], None]) -> None:
        """Attend to ``count`` (1 to BLOCK) more rows: ``row(j)``. ``fetch(j, column, columns)`` asks for a part of
        row j of the next block: each phase asks for what it will read, so that memory is busy all the time."""
        tile_heads, keys = self._tiles.score_tile
        with T.serial(0, T.floordiv(count + (keys - 1), keys)) as tile:
            for j in range(keys):
                j = tile * keys + j
                self._fill(self._rows, j, self._columns, row(T.min(j, count - 1)))
                for start, end in self._key_only:
                    fetch(j, start, end - start)
            _split(self._heads, tile_heads, lambda head, heads: self._score(head, heads, tile * keys))
        with T.serial(0, self._heads) as head:
            self._weigh(head, count)
        tile_heads, tile_vectors = self._tiles.value_tile
        _split(self._value_vectors, tile_vectors, lambda vector, vectors: _split(
            self._heads, tile_heads,
            lambda head, heads: self._add_values(head, heads, vector * self._lanes, vectors, count, fetch)))

    def total(self, head: Any) -> Any:
        """The sum of a head's weights."""
        return Register(self._lanes, load(self._totals, head, 0, lanes=self._lanes)).sum()

    def _fill(self, buffer: T.Buffer, row: Any, columns: int, values: Read) -> None:
        for_lanes(columns, self._lanes, lambda i, lanes: store(buffer, values(i, lanes), row, i, lanes=lanes))

    def _score(self, head: Any, heads: int, key: Any) -> None:
        """weights[head + h, key + j] = query of the head . key, for a tile of both."""
        lanes, keys = self._lanes, self._tiles.score_tile[1]
        acc = [[Register(lanes) for _ in range(keys)] for _ in range(heads)]
        with T.serial(0, self._key_vectors) as i:
            columns = [T.bind(load(self._rows, key + j, i * lanes, lanes=lanes)) for j in range(keys)]
            for h, registers in enumerate(acc):
                query = T.bind(load(self._queries, head + h, i * lanes, lanes=lanes))
                for register, column in zip(registers, columns):
                    register.fma(query, column)
        together = max(1, lanes // keys)  # heads whose scores fill a vector
        for first in range(0, heads, together):
            scores = Register(lanes, sums([register for registers in acc[first:first + together]
                                           for register in registers]))
            for h in range(first, min(first + together, heads)):
                store(self._weights, scores.part((h - first) * keys, keys), head + h, key, lanes=keys)

    def _weigh(self, head: Any, count: Any) -> None:
        """weights[head] = exp(weights[head] - highest score so far), 0 from ``count`` on; what was summed so far
        is scaled to a new highest score."""
        lanes = self._lanes
        vectors = range(BLOCK // lanes)

        def valid(v: int, value: Any, otherwise: float) -> Any:
            index = T.ramp(T.int32(v * lanes), 1, lanes)
            return T.Select(index < T.broadcast(T.cast(count, "int32"), lanes), value, splat(otherwise, lanes))

        scores = [Register(lanes, valid(v, load(self._weights, head, v * lanes, lanes=lanes), _LOWEST))
                  for v in vectors]
        highest = Register(lanes, scores[0].get())
        for score in scores[1:]:
            highest.set(T.max(highest.get(), score.get()))
        top = Register(1, T.max(self._top[head], highest.max()))
        with when(top.get() > self._top[head]):
            factor = Register(1, exp(self._top[head] - top.get(), 1))
            for buffer, width in ((self.mix, self._value_vectors * lanes), (self._totals, lanes)):
                for_lanes(width, lanes, lambda i, _: store(
                    buffer, load(buffer, head, i, lanes=lanes) * splat(factor.get(), lanes), head, i, lanes=lanes))
            T.buffer_store(self._top, top.get(), [head])
        total = Register(lanes, load(self._totals, head, 0, lanes=lanes))
        for v in vectors:
            scores[v].set(valid(v, exp(scores[v].get() - splat(top.get(), lanes), lanes), 0.0))
            store(self._weights, scores[v].get(), head, v * lanes, lanes=lanes)
            total.set(total.get() + scores[v].get())
        store(self._totals, total.get(), head, 0, lanes=lanes)

    def _add_values(self, head: Any, heads: int, first: Any, vectors: int, count: Any,
                    fetch: Callable[[Any, Any, int], None]) -> None:
        """mix[head + h, first:] += sum_j weights[head + h, j] * values of row j, for a tile of heads and vectors."""
        lanes = self._lanes
        starts = [first + v * lanes for v in range(vectors)]
        acc = [[Register(lanes, load(self.mix, head + h, start, lanes=lanes)) for start in starts]
               for h in range(heads)]
        with T.serial(0, count) as j:
            with when(head == 0):
                fetch(j, self._value_offset + first, vectors * lanes)
            values = [T.bind(load(self._rows, j, self._value_offset + start, lanes=lanes)) for start in starts]
            for h, registers in enumerate(acc):
                weight = T.bind(splat(self._weights[head + h, j], lanes))
                for register, value in zip(registers, values):
                    register.fma(weight, value)
        for h, registers in enumerate(acc):
            for register, start in zip(registers, starts):
                store(self.mix, register.get(), head + h, start, lanes=lanes)


def _zero(_: Any, lanes: int) -> Any:
    return splat(0.0, lanes)


def _split(count: int, largest: int, body: Callable[[Any, int], None]) -> None:
    """``body(first, size)`` over ``count`` things in as few tiles as ``largest`` allows, of nearly equal size."""
    tiles = -(-count // largest)
    small, larger = divmod(count, tiles)

    def emit(start: int, number: int, size: int) -> None:
        if number:
            with T.serial(0, number) as i:
                body(start + i * size, size)

    emit(0, larger, small + 1)
    emit(larger * (small + 1), tiles - larger, small)
