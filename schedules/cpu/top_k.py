"""The most likely tokens of the draft model's head, and their log-probabilities."""

from __future__ import annotations

from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import factory, kernel, when
from ..tiles import CpuTiles
from .vector import Register, exp, load, log, over_rows, splat, sum_over

_VECTORS = 8  # vectors whose largest element is compared with the list's smallest at a time
_PARALLEL_ELEMENTS = 1 << 15  # of logits, for a parallel launch to pay


@factory
def top_k(tiles: CpuTiles, vocab: int, k: int, *, mapped: bool = False) -> tvm.tirx.PrimFunc:
    """The ``k`` largest logits of each row in falling order (of equal ones the lower index first) and the logarithms
    of their softmax over the row.

    Parameters: logits f32 [m, vocab]; token_ids int32 [vocab] if ``mapped``; tokens int32 [m, k]: token_ids[index], or
    the index itself; log_probs f32 [m, k]. The sum of the exponentials has an order fixed by ``vocab``.
    """
    with kernel(__name__) as builder:
        m = builder.rows_var()
        logits = builder.tensor((m, vocab))
        token_ids = builder.tensor((vocab,), "int32") if mapped else None
        tokens = builder.tensor((m, k), "int32")
        log_probs = builder.tensor((m, k))

        def body(row: Any) -> None:
            best = _Best(k)

            def offer(i: Any) -> None:
                value = T.bind(logits[row, i])
                with when(value > best.smallest()):
                    best.insert(value, T.cast(i, "int32"))

            step = _VECTORS * tiles.lanes
            with T.serial(0, vocab // step) as block:
                start = T.bind(block * step)
                largest = Register(tiles.lanes, load(logits, row, start, lanes=tiles.lanes))
                for j in range(1, _VECTORS):
                    largest.set(T.max(largest.get(), load(logits, row, start + j * tiles.lanes, lanes=tiles.lanes)))
                with when(largest.max() > best.smallest()), T.serial(0, step) as i:
                    offer(start + i)
            with T.serial(vocab // step * step, vocab) as i:
                offer(i)

            def add(i: Any, lanes: int, total: Register) -> None:
                total.set(total.get() + exp(load(logits, row, i, lanes=lanes) - splat(best.largest(), lanes), lanes))

            log_total = Register(1, log(sum_over(vocab, tiles.lanes, add))).get()
            with T.serial(0, k) as place:
                index = best.indices[place]
                T.buffer_store(tokens, index if token_ids is None else token_ids[index], [row, place])
                T.buffer_store(log_probs, best.values[place] - best.largest() - log_total, [row, place])

        over_rows(m, max(2, -(-_PARALLEL_ELEMENTS // vocab)), body)
    return builder.func


class _Best:
    """The largest values so far, in falling order, and where they were found; earlier ones first among equals."""

    def __init__(self, k: int) -> None:
        self._k = k
        self.values = T.alloc_buffer((k,), "float32")
        self.indices = T.alloc_buffer((k,), "int32")
        with T.serial(0, k) as place:
            T.buffer_store(self.values, T.float32(-float("inf")), [place])
            T.buffer_store(self.indices, T.int32(0), [place])

    def largest(self) -> Any:
        return self.values[0]

    def smallest(self) -> Any:
        return self.values[self._k - 1]

    def insert(self, value: Any, index: Any) -> None:
        """Put a value that is larger than the smallest into its place."""
        with T.serial(0, self._k) as i:
            place = T.bind(self._k - 1 - i)
            above = T.bind(T.max(place - 1, T.int64(0)))
            shift = T.bind(T.And(place > 0, value > self.values[above]))
            here = T.bind(value > self.values[place])
            for buffer, new in ((self.indices, index), (self.values, value)):
                T.buffer_store(buffer, T.Select(shift, buffer[above], T.Select(here, new, buffer[place])), [place])
