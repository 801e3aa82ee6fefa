"""Union of active experts, per run of at most UNION_CHUNK tokens."""

from __future__ import annotations

from functools import cache
from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..tiles import UNION_CHUNK
from .vector import kernel, over_rows, rows_var, when

PARALLEL_CHUNKS = 2


@cache
def union(experts: int, *, dense: bool = False) -> tvm.tirx.PrimFunc:
    """Compact the ids of experts with a non-zero score for at least one token of each chunk.

    Parameters: scores f32 [n, experts]; ids int32 [chunks, experts], ascending, then -1;
    counts int32 [chunks]; chunks = ceil(n / UNION_CHUNK). ``dense`` lists every expert: the
    comparison that the sparse path is measured against.
    """
    with kernel(__name__) as k:
        n = rows_var()
        chunks = union_chunks(n)
        scores = k.tensor((n, experts))
        ids = k.tensor((chunks, experts), "int32")
        counts = k.tensor((chunks,), "int32")

        def body(chunk: Any) -> None:
            first = chunk * UNION_CHUNK
            active, count = (T.alloc_buffer((1,), "int32") for _ in range(2))
            T.buffer_store(count, T.int32(0), [0])
            with T.serial(0, experts) as expert:
                T.buffer_store(ids, T.int32(-1), [chunk, expert])
                T.buffer_store(active, T.int32(int(dense)), [0])
                with T.serial(0, T.min(n - first, UNION_CHUNK)) as token:
                    with when(scores[first + token, expert] != T.float32(0)):
                        T.buffer_store(active, T.int32(1), [0])
                with when(active[0] != 0):
                    T.buffer_store(ids, T.cast(expert, "int32"), [chunk, T.cast(count[0], "int64")])
                    T.buffer_store(count, count[0] + 1, [0])
            T.buffer_store(counts, count[0], [chunk])

        over_rows(chunks, PARALLEL_CHUNKS, body)
    return k.func


def union_chunks(n: Any) -> Any:
    """Number of unions for n tokens."""
    return T.floordiv(n + (UNION_CHUNK - 1), UNION_CHUNK)
