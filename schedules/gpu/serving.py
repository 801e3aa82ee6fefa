"""What MLC's engine asks of a library around the model: rows to look at, probabilities, penalties (MLC contract,
section 1.2)."""

from __future__ import annotations

from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import factory, when
from ..serving import COLD, MASKED, WORD_BITS
from ..tiles import GpuTiles
from .grid import Local, barrier, ceil_div, kernel, launch, reduce, strided, total
from .matrix import LANES


@factory
def row_numbers() -> tvm.tirx.PrimFunc:
    """rows[i] = first + i; parameters as the CPU kernel's."""
    with kernel(__name__) as k:
        m = k.rows_var()
        first = k.scalar("first")
        rows = k.tensor((m,), "int32")
        with launch((ceil_div(m, LANES),), (LANES,)) as ((part,), (lane,)):
            i = T.bind(part * LANES + lane)
            with when(i < m):
                T.buffer_store(rows, first + i, [i])
    return k.func


@factory
def softmax_with_temperature(tiles: GpuTiles, vocab: int) -> tvm.tirx.PrimFunc:
    """probs[b] = softmax(logits[b] / temperature[b]); parameters as the CPU kernel's. A work-group takes a row."""
    with kernel(__name__) as k:
        b = k.rows_var()
        logits = k.tensor((b, 1, vocab))
        temperature = k.tensor((b,))
        probs = k.tensor((b, 1, vocab))

        with launch((b,), (tiles.items,)) as ((row,), (item,)):
            largest, weights = Local(1, MASKED), Local(1, 0.0)
            cold = T.bind(temperature[row] <= T.float32(COLD))
            inverse = T.bind(T.Select(cold, T.float32(1), T.float32(1) / temperature[row]))
            strided(item, vocab, tiles.items, lambda i: largest.set(0, T.max(largest[0], logits[row, 0, i])))
            (top,) = reduce(item, tiles.items, [largest[0]], T.max)

            def weight(i: Any) -> Any:
                distance = T.bind(logits[row, 0, i] - top)
                equal = T.Select(distance >= T.float32(0), T.float32(1), T.float32(0))
                return T.Select(cold, equal, T.exp(distance * inverse))

            strided(item, vocab, tiles.items, lambda i: weights.add(0, weight(i)))
            barrier()  # everyone has read the largest, whose memory this may be
            (whole,) = total(item, tiles.items, weights[0])
            strided(item, vocab, tiles.items, lambda i: T.buffer_store(probs, weight(i) / whole, [row, 0, i]))
    return k.func


@factory
def apply_logit_bias(vocab: int) -> tvm.tirx.PrimFunc:
    """logits[rows[i], tokens[i]] += bias[i]; parameters as the CPU kernel's. No token of a row is named twice."""
    with kernel(__name__) as k:
        b, count = k.rows_var(), k.rows_var()
        logits = k.tensor((b, vocab))
        rows, tokens = k.tensor((count,), "int32"), k.tensor((count,), "int32")
        bias = k.tensor((count,))
        with launch((ceil_div(count, LANES),), (LANES,)) as ((part,), (lane,)):
            i = T.bind(part * LANES + lane)
            with when(i < count):
                T.buffer_store(logits, logits[rows[i], tokens[i]] + bias[i], [rows[i], tokens[i]])
    return k.func


@factory
def apply_penalty(vocab: int) -> tvm.tirx.PrimFunc:
    """Presence, frequency and repetition penalties; parameters as the CPU kernel's. No token of a row is named
    twice."""
    with kernel(__name__) as k:
        b, sequences, count = k.rows_var(), k.rows_var(), k.rows_var()
        logits = k.tensor((b, vocab))
        seq_ids = k.tensor((sequences,), "int32")
        places, tokens, counts = (k.tensor((count,), "int32") for _ in range(3))
        penalties = k.tensor((sequences, 3))
        with launch((ceil_div(count, LANES),), (LANES,)) as ((part,), (lane,)):
            i = T.bind(part * LANES + lane)
            with when(i < count):
                place = T.bind(places[i])
                row, token = T.bind(seq_ids[place]), T.bind(tokens[i])
                value = T.bind(logits[row, token] - (penalties[place, 0] + T.cast(counts[i], "float32")
                                                     * penalties[place, 1]))
                T.buffer_store(logits, T.Select(value > T.float32(0), value / penalties[place, 2],
                                                value * penalties[place, 2]), [row, token])
    return k.func


@factory
def apply_bitmask(vocab: int) -> tvm.tirx.PrimFunc:
    """The lowest float32 for a named row's tokens whose bit is 0; parameters as the CPU kernel's."""
    with kernel(__name__) as k:
        b, count = k.rows_var(), k.rows_var()
        logits = k.tensor((b, vocab))
        rows = k.tensor((count,), "int32")
        bits = k.tensor((b, -(-vocab // WORD_BITS)), "int32")
        with launch((ceil_div(vocab, LANES), count), (LANES,)) as ((part, i), (lane,)):
            token = T.bind(part * LANES + lane)
            with when(token < vocab):
                row = T.bind(rows[i])
                bit = T.bitwise_and(T.shift_right(bits[row, T.truncdiv(token, WORD_BITS)],
                                                  T.truncmod(token, WORD_BITS)), T.int32(1))
                with when(bit == 0):
                    T.buffer_store(logits, T.float32(MASKED), [row, token])
    return k.func


@factory
def whole_vocabulary(tiles: GpuTiles, vocab: int, listed: int) -> tvm.tirx.PrimFunc:
    """Logits of the listed tokens as logits of all; parameters as the CPU kernel's."""
    with kernel(__name__) as k:
        b = k.rows_var()
        x = k.tensor((b, listed))
        places = k.tensor((vocab,), "int32")
        y = k.tensor((b, vocab))
        with launch((ceil_div(vocab, tiles.items), b), (tiles.items,)) as ((part, row), (item,)):
            token = T.bind(part * tiles.items + item)
            with when(token < vocab):
                place = T.bind(places[token])
                T.buffer_store(y, T.if_then_else(place >= 0, x[row, place], T.float32(MASKED)), [row, token])
    return k.func


@factory
def gather_rows(tiles: GpuTiles, width: int, dtype: str) -> tvm.tirx.PrimFunc:
    """target[i] = source[rows[i]]; parameters as the CPU kernel's."""
    with kernel(__name__) as k:
        m, count = k.rows_var(), k.rows_var()
        target = k.tensor((count, width), dtype)
        source = k.tensor((m, width), dtype)
        rows = k.tensor((count,), "int32")
        with launch((count,), (tiles.items,)) as ((row,), (item,)):
            strided(item, width, tiles.items,
                    lambda i: T.buffer_store(target, source[rows[row], i], [row, i]))
    return k.func


@factory
def scatter_rows(tiles: GpuTiles, width: int, dtype: str) -> tvm.tirx.PrimFunc:
    """target[rows[i]] = source[i]; parameters as the CPU kernel's."""
    with kernel(__name__) as k:
        m, count = k.rows_var(), k.rows_var()
        target = k.tensor((m, width), dtype)
        source = k.tensor((count, width), dtype)
        rows = k.tensor((count,), "int32")
        with launch((count,), (tiles.items,)) as ((row,), (item,)):
            strided(item, width, tiles.items,
                    lambda i: T.buffer_store(target, source[row, i], [rows[row], i]))
    return k.func
