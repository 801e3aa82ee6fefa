"""The largest logits of a row: the choice of greedy decoding, and a draft model's candidates."""

from __future__ import annotations

from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import factory, when
from ..tiles import GpuTiles
from .grid import Local, barrier, kernel, launch, shared, strided, total

_LOWEST = -float("inf")


@factory
def argmax(tiles: GpuTiles, vocab: int) -> tvm.tirx.PrimFunc:
    """The lowest index with the largest logit of each row, and that logit.

    Parameters: logits f32 [m, vocab]; tokens int32 [m]; values f32 [m]. A NaN counts as inf, so that it is noticed: the
    value is then NaN (inf where one comes before it). A row of nothing but -inf gives index 0 and -inf.
    """
    with kernel(__name__) as k:
        m = k.rows_var()
        logits = k.tensor((m, vocab))
        tokens = k.tensor((m,), "int32")
        values = k.tensor((m,))
        with launch((m,), (tiles.items,)) as ((row,), (item,)):
            _, index = _Largest(tiles, item).of(lambda i: _nan_as_inf(logits[row, i]), vocab,
                                                lambda value, index: T.bool(True))
            with when(item == 0):
                T.buffer_store(tokens, index, [row])
                T.buffer_store(values, logits[row, index], [row])
    return k.func


@factory
def top_k(tiles: GpuTiles, vocab: int, k: int, *, mapped: bool = False) -> tvm.tirx.PrimFunc:
    """The ``k`` largest logits of each row in falling order (of equal ones the lower index first) and the logarithms
    of their softmax over the row; parameters as the CPU kernel's. A work-group takes a row and looks for one after the
    other: the largest behind the one found last."""
    with kernel(__name__) as builder:
        m = builder.rows_var()
        logits = builder.tensor((m, vocab))
        token_ids = builder.tensor((vocab,), "int32") if mapped else None
        tokens = builder.tensor((m, k), "int32")
        log_probs = builder.tensor((m, k))

        with launch((m,), (tiles.items,)) as ((row,), (item,)):
            largest = _Largest(tiles, item)
            top, first = largest.of(lambda i: logits[row, i], vocab, lambda value, index: T.bool(True))
            sums = Local(1, 0.0)
            strided(item, vocab, tiles.items, lambda i: sums.add(0, T.exp(logits[row, i] - top)))
            (exponentials,) = total(item, tiles.items, sums[0])
            log_total = T.bind(T.log(exponentials))
            last_value, last_index = Local(1, top), Local(1, first, "int32")
            with T.serial(0, k) as place:
                with when(item == 0):
                    index = last_index[0]
                    T.buffer_store(tokens, index if token_ids is None else token_ids[index], [row, place])
                    T.buffer_store(log_probs, last_value[0] - top - log_total, [row, place])
                value, index = largest.of(lambda i: logits[row, i], vocab, lambda value, index: T.Or(
                    value < last_value[0], T.And(value == last_value[0], index > last_index[0])))
                last_value.set(0, value)
                last_index.set(0, index)
    return builder.func


def _nan_as_inf(value: Any) -> Any:
    """By its bits: compilers may assume that every number equals itself."""
    value = T.bind(value)
    bits = T.bitwise_and(T.reinterpret("int32", value), T.int32(0x7FFFFFFF))
    return T.Select(bits > T.int32(0x7F800000), T.float32(float("inf")), value)


class _Largest:
    """A search by all items of a group."""

    def __init__(self, tiles: GpuTiles, item: Any) -> None:
        self._items, self._item = tiles.items, item
        self._values, self._indices = shared((tiles.items,)), shared((tiles.items,), "int32")

    def of(self, element: Any, count: int, among: Any) -> tuple[Any, Any]:
        """The largest of ``element(i)``, i < ``count``, that ``among(value, index)`` holds for and its index, the
        lowest of equals; -inf and 0 where there is none. Contains barriers."""
        best, place = Local(1, _LOWEST), Local(1, 0, "int32")

        def look(i: Any) -> None:
            value = T.bind(element(i))
            with when(T.And(value > best[0], among(value, i))):
                best.set(0, value)
                place.set(0, i)

        strided(self._item, count, self._items, look)
        barrier()  # of an earlier search everyone has read the result
        T.buffer_store(self._values, best[0], [self._item])
        T.buffer_store(self._indices, place[0], [self._item])
        barrier()
        best.set(0, _LOWEST)
        place.set(0, 0)
        with T.serial(0, self._items) as other:
            value, index = T.bind(self._values[other]), T.bind(self._indices[other])
            with when(T.Or(value > best[0], T.And(value == best[0], index < place[0]))):
                best.set(0, value)
                place.set(0, index)
        return T.bind(best[0]), T.bind(place[0])
