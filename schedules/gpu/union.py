"""Union of active experts over the tokens of a pass, and which tokens use each of them."""

from __future__ import annotations

from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import factory, when
from ..union import union_tensors
from .grid import Local, barrier, kernel, launch, shared, strided

_ITEMS = 128


@factory
def union(experts: int, *, dense: bool = False) -> tvm.tirx.PrimFunc:
    """Compact the experts with a non-zero score for at least one token, and their tokens; parameters as the CPU
    kernel's. One work-group; a work-item writes what there is of its experts, at the place of each: active ones come
    first, by the number of active ones before them."""
    with kernel(__name__) as k:
        n = k.rows_var()
        scores = k.tensor((n, experts))
        ids, count, uses, tokens = union_tensors(k, experts, n)

        def over_tokens(expert: Any, body: Any) -> None:
            """``body(token)`` for the tokens that use an expert."""
            with T.serial(0, n) as token, when(T.bool(True) if dense else scores[token, expert] != T.float32(0)):
                body(token)

        with launch((1,), (_ITEMS,)) as (_, (item,)):
            used = shared((experts,), "int32")

            def find(expert: Any) -> None:
                found = Local(1, 0, "int32")
                over_tokens(expert, lambda token: found.add(0, 1))
                T.buffer_store(used, found[0], [expert])

            def write(expert: Any) -> None:
                before, size, places = Local(1, 0, "int32"), Local(1, 0, "int32"), Local(1, 0, "int32")
                with T.serial(0, experts) as other:
                    one = T.bind(T.min(used[other], 1))
                    size.add(0, one)
                    before.add(0, T.Select(other < expert, one, T.int32(0)))
                uses_here = T.bind(used[expert])
                active = uses_here != 0
                place = T.bind(T.Select(active, before[0], size[0] + expert - before[0]))
                T.buffer_store(ids, T.Select(active, expert, T.int32(-1)), [place])
                T.buffer_store(uses, uses_here, [place])

                def put(token: Any) -> None:
                    T.buffer_store(tokens, token, [place, places[0]])
                    places.add(0, 1)

                over_tokens(expert, put)
                with T.serial(uses_here, n) as rest:
                    T.buffer_store(tokens, T.int32(-1), [place, rest])
                with when(expert == 0):
                    T.buffer_store(count, size[0], [0])

            strided(item, experts, _ITEMS, find, unroll=True)
            barrier()
            strided(item, experts, _ITEMS, write)
    return k.func
