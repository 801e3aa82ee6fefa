"""Union of active experts over the tokens of a pass, and which tokens use each of them."""

from __future__ import annotations

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import factory, kernel, when
from ..union import union_tensors


@factory
def union(experts: int, *, dense: bool = False) -> tvm.tirx.PrimFunc:
    """Compact the experts with a non-zero score for at least one token, and their tokens.

    Parameters: scores f32 [n, experts]; ids int32 [experts]: the union, ascending, then -1; count int32 [1]:
    its size; uses int32 [experts]: at each place of the union, how many tokens use that expert, then 0;
    tokens int32 [experts, n]: at each place, those tokens, ascending, then -1. ``dense`` has every token use
    every expert: the comparison that the sparse path is measured against.
    """
    with kernel(__name__) as k:
        n = k.rows_var()
        scores = k.tensor((n, experts))
        ids, count, uses, tokens = union_tensors(k, experts, n)
        T.buffer_store(count, T.int32(0), [0])
        with T.serial(0, experts) as expert:
            place = T.bind(T.cast(count[0], "int64"))
            T.buffer_store(uses, T.int32(0), [place])
            with T.serial(0, n) as token:
                T.buffer_store(tokens, T.int32(-1), [place, token])
                with when(T.bool(True) if dense else scores[token, expert] != T.float32(0)):
                    T.buffer_store(tokens, T.cast(token, "int32"), [place, T.cast(uses[place], "int64")])
                    T.buffer_store(uses, uses[place] + 1, [place])
            with when(uses[place] != 0):
                T.buffer_store(ids, T.cast(expert, "int32"), [place])
                T.buffer_store(count, count[0] + 1, [0])
        with T.serial(T.cast(count[0], "int64"), experts) as place:
            T.buffer_store(ids, T.int32(-1), [place])
            T.buffer_store(uses, T.int32(0), [place])
            with T.serial(0, n) as token:
                T.buffer_store(tokens, T.int32(-1), [place, token])
    return k.func
