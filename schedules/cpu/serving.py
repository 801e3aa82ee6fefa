"""What MLC's engine asks of a library around the model: rows to look at, probabilities, penalties (MLC contract,
section 1.2). Small, hence plain loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import choose, factory, kernel, when
from ..serving import COLD, MASKED, WORD_BITS
from ..tiles import CpuTiles
from .vector import Register, exp, for_lanes, load, over_rows, splat, store, sum_over, vector


@factory
def row_numbers() -> tvm.tirx.PrimFunc:
    """rows[i] = first + i. Parameters: first; rows int32 [m]."""
    with kernel(__name__) as k:
        m = k.rows_var()
        first = k.scalar("first")
        rows = k.tensor((m,), "int32")
        with T.serial(0, m) as i:
            T.buffer_store(rows, T.cast(first + i, "int32"), [i])
    return k.func


@factory
def softmax_with_temperature(tiles: CpuTiles, vocab: int) -> tvm.tirx.PrimFunc:
    """probs[b] = softmax(logits[b] / temperature[b]); at a temperature of 1e-5 or less all of it goes to the largest
    logits, in equal parts.

    Parameters: logits f32 [b, 1, vocab]; temperature f32 [b]; probs f32 [b, 1, vocab].
    """
    with kernel(__name__) as k:
        b = k.rows_var()
        logits = k.tensor((b, 1, vocab))
        temperature = k.tensor((b,))
        probs = k.tensor((b, 1, vocab))

        def body(row: Any) -> None:
            largest = Register(1, T.float32(MASKED))
            with T.serial(0, vocab) as i:
                largest.set(T.max(largest.get(), logits[row, 0, i]))

            def write(weight: Callable[[Any, int], Any]) -> None:
                def add(i: Any, lanes: int, total: Register) -> None:
                    total.set(total.get() + weight(i, lanes))

                total = Register(1, sum_over(vocab, tiles.lanes, add)).get()
                for_lanes(vocab, tiles.lanes, lambda i, lanes: store(
                    probs, weight(i, lanes) / splat(total, lanes), row, 0, i, lanes=lanes))

            def distance(i: Any, lanes: int) -> Any:
                return load(logits, row, 0, i, lanes=lanes) - splat(largest.get(), lanes)

            def warm() -> None:
                inverse = Register(1, T.float32(1) / temperature[row]).get()
                write(lambda i, lanes: exp(distance(i, lanes) * splat(inverse, lanes), lanes))

            choose(temperature[row] <= T.float32(COLD),
                   lambda: write(lambda i, lanes: T.cast(distance(i, lanes) >= splat(0.0, lanes),
                                                         vector("float32", lanes))), warm)

        over_rows(b, tiles.parallel_rows, body)
    return k.func


@factory
def apply_logit_bias(vocab: int) -> tvm.tirx.PrimFunc:
    """logits[rows[i], tokens[i]] += bias[i].

    Parameters: logits f32 [b, vocab]; rows, tokens int32 [k]; bias f32 [k].
    """
    with kernel(__name__) as k:
        b, count = k.rows_var(), k.rows_var()
        logits = k.tensor((b, vocab))
        rows, tokens = k.tensor((count,), "int32"), k.tensor((count,), "int32")
        bias = k.tensor((count,))
        with T.serial(0, count) as i:
            T.buffer_store(logits, logits[rows[i], tokens[i]] + bias[i], [rows[i], tokens[i]])
    return k.func


@factory
def apply_penalty(vocab: int) -> tvm.tirx.PrimFunc:
    """For every token i that row seq_ids[p] has seen counts[i] times, p = places[i]: subtract presence + counts[i] *
    frequency, then divide what is positive by the repetition penalty and multiply what is negative by it.

    Parameters: logits f32 [b, vocab]; seq_ids int32 [s]; places, tokens, counts int32 [k]; penalties f32 [s, 3]:
    presence, frequency, repetition.
    """
    with kernel(__name__) as k:
        b, sequences, count = k.rows_var(), k.rows_var(), k.rows_var()
        logits = k.tensor((b, vocab))
        seq_ids = k.tensor((sequences,), "int32")
        places, tokens, counts = (k.tensor((count,), "int32") for _ in range(3))
        penalties = k.tensor((sequences, 3))
        with T.serial(0, count) as i:
            place = T.bind(places[i])
            row, token = T.bind(seq_ids[place]), T.bind(tokens[i])
            value = T.bind(logits[row, token] - (penalties[place, 0] + T.cast(counts[i], "float32")
                                                 * penalties[place, 1]))
            T.buffer_store(logits, T.if_then_else(value > T.float32(0), value / penalties[place, 2],
                                                  value * penalties[place, 2]), [row, token])
    return k.func


@factory
def apply_bitmask(vocab: int) -> tvm.tirx.PrimFunc:
    """Of every row that ``rows`` names, the tokens whose bit is 0 get the lowest float32.

    Parameters: logits f32 [b, vocab]; rows int32 [s]; bits int32 [b, ceil(vocab / 32)].
    """
    with kernel(__name__) as k:
        b, count = k.rows_var(), k.rows_var()
        logits = k.tensor((b, vocab))
        rows = k.tensor((count,), "int32")
        bits = k.tensor((b, -(-vocab // WORD_BITS)), "int32")
        with T.serial(0, count) as i, T.serial(0, vocab) as token:
            row = T.bind(rows[i])
            bit = T.bitwise_and(T.shift_right(bits[row, token // WORD_BITS], T.cast(token % WORD_BITS, "int32")), 1)
            with when(bit == 0):
                T.buffer_store(logits, T.float32(MASKED), [row, token])
    return k.func


@factory
def whole_vocabulary(tiles: CpuTiles, vocab: int, listed: int) -> tvm.tirx.PrimFunc:
    """y[b, v] = x[b, places[v]], or the lowest float32 where places[v] is negative: logits of the listed tokens as
    logits of all.

    Parameters: x f32 [b, listed]; places int32 [vocab]; y f32 [b, vocab].
    """
    with kernel(__name__) as k:
        b = k.rows_var()
        x = k.tensor((b, listed))
        places = k.tensor((vocab,), "int32")
        y = k.tensor((b, vocab))

        def body(row: Any) -> None:
            with T.serial(0, vocab) as v:
                T.buffer_store(y, T.if_then_else(places[v] >= 0, x[row, places[v]], T.float32(MASKED)), [row, v])

        over_rows(b, tiles.parallel_rows, body)
    return k.func


@factory
def gather_rows(tiles: CpuTiles, width: int, dtype: str) -> tvm.tirx.PrimFunc:
    """target[i] = source[rows[i]]. Parameters: target [k, width]; source [m, width]; rows int32 [k]."""
    with kernel(__name__) as k:
        m, count = k.rows_var(), k.rows_var()
        target = k.tensor((count, width), dtype)
        source = k.tensor((m, width), dtype)
        rows = k.tensor((count,), "int32")
        over_rows(count, tiles.parallel_rows, lambda i: _copy(tiles, width, source, rows[i], target, i))
    return k.func


@factory
def scatter_rows(tiles: CpuTiles, width: int, dtype: str) -> tvm.tirx.PrimFunc:
    """target[rows[i]] = source[i]. Parameters: target [m, width]; source [k, width]; rows int32 [k]."""
    with kernel(__name__) as k:
        m, count = k.rows_var(), k.rows_var()
        target = k.tensor((m, width), dtype)
        source = k.tensor((count, width), dtype)
        rows = k.tensor((count,), "int32")
        over_rows(count, tiles.parallel_rows, lambda i: _copy(tiles, width, source, i, target, rows[i]))
    return k.func


def _copy(tiles: CpuTiles, width: int, source: T.Buffer, start: Any, target: T.Buffer, end: Any) -> None:
    for_lanes(width, tiles.lanes, lambda i, lanes: store(
        target, load(source, T.cast(start, "int64"), i, lanes=lanes), T.cast(end, "int64"), i, lanes=lanes))
