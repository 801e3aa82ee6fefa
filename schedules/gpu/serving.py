"""What MLC's engine asks of a library around the model: rows to look at, heads for its cache, probabilities, penalties
(MLC contract, section 1.2)."""

from __future__ import annotations

from typing import Any

import tvm
from tvm.script.ir_builder import tirx as T

from ..builder import factory, when
from ..serving import COLD, MASKED, WORD_BITS
from ..tiles import GpuTiles
from .grid import Local, barrier, ceil_div, float32, kernel, launch, reduce, shared, strided, total
from .latent_query import project
from .matrix import LANES, Row, matrix
from .norm import norm_factor
from .product import Product, Variant
from .rope import rotate


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
def rope_heads(tiles: GpuTiles, rotated: int, kept: int, dim: int, positions: int, dtype: str) -> tvm.tirx.PrimFunc:
    """The first ``rotated`` heads rotated, the ``kept`` ones behind them as they are; parameters as the CPU kernel's. A
    work-group takes a head of a token."""
    with kernel(__name__) as k:
        n = k.rows_var()
        x = k.tensor((n, (rotated + kept) * dim))
        pos = k.tensor((n,), "int32")
        table = k.tensor((positions, dim))
        y = k.tensor((n, rotated + kept, dim), dtype)

        with launch((rotated + kept, n), (LANES,)) as ((head, row), (item,)):
            def write(value: Any, i: Any) -> None:
                T.buffer_store(y, T.cast(value, dtype), [row, head, i])

            with when(head < rotated):
                rotate(item, LANES, dim, table, T.bind(pos[row]), lambda i: x[row, head * dim + i], write)
            with when(head >= rotated):
                strided(item, dim, LANES, lambda i: write(x[row, head * dim + i], i))
    return k.func


@factory
def latent_heads(tiles: GpuTiles, heads: int, latent: int, rope: int, positions: int, eps: float, *, x_width: int,
                 offset: int, weight_dtype: str, dtype: str) -> tvm.tirx.PrimFunc:
    """MLA as attention with one head of keys; parameters as the CPU kernel's. A work-group takes a token."""
    with kernel(__name__) as k:
        n = k.rows_var()
        q = k.tensor((n, heads, latent + rope))
        x = k.tensor((n, x_width))
        weight = k.tensor((latent,), weight_dtype)
        pos = k.tensor((n,), "int32")
        table = k.tensor((positions, rope))
        y = k.tensor((n, heads + 2, latent + rope), dtype)

        with launch((n,), (tiles.items,)) as ((row,), (item,)):
            def write(head: Any, value: Any, i: Any) -> None:
                T.buffer_store(y, T.cast(value, dtype), [row, head, i])

            def both(value: Any, i: Any) -> None:
                value = T.bind(value)
                for head in (heads, heads + 1):
                    write(head, value, i)

            factor = norm_factor(tiles, item, latent, eps, lambda i: x[row, offset + i])
            with T.serial(0, heads) as head:
                strided(item, latent + rope, tiles.items, lambda i: write(head, q[row, head, i], i))
            strided(item, latent, tiles.items, lambda i: both(x[row, offset + i] * factor * float32(weight[i]), i))
            rotate(item, tiles.items, rope, table, T.bind(pos[row]), lambda i: x[row, offset + latent + i],
                   lambda value, i: both(value, latent + i))
    return k.func


@factory
def value_up(tiles: GpuTiles, heads: int, latent: int, width: int, v_dim: int, weight_format: str, dtype: str,
             activations: str = "f32") -> tvm.tirx.PrimFunc:
    """y[t, h] = v_up[h] x[t, h, :latent]; parameters as the CPU kernel's. A work-group takes a head of a token."""
    with kernel(__name__) as k:
        n = k.rows_var()
        x = k.tensor((n, heads, width), dtype)
        v_up = matrix(k, tiles, weight_format, (heads, v_dim, latent))
        y = k.tensor((n, heads * v_dim))

        with launch((heads, n), (LANES, tiles.slices)) as ((head, row), (lane, part)):
            product, own = Product(tiles, Variant(1), v_up, lane, part), shared((1, latent))
            strided(T.bind(part * LANES + lane), latent, tiles.items,
                    lambda i: T.buffer_store(own, float32(x[row, head, i]), [0, i]))
            barrier()
            project(product, v_up, (head,), [Row(own, (0,))], lane,
                    lambda t, value, i: T.buffer_store(y, value, [row, head * v_dim + i]))
    return k.func


@factory
def widen(tiles: GpuTiles, width: int, dtype: str) -> tvm.tirx.PrimFunc:
    """y = x as float32; parameters as the CPU kernel's."""
    with kernel(__name__) as k:
        n = k.rows_var()
        x = k.tensor((n, width), dtype)
        y = k.tensor((n, width))
        with launch((n,), (tiles.items,)) as ((row,), (item,)):
            strided(item, width, tiles.items, lambda i: T.buffer_store(y, float32(x[row, i]), [row, i]))
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
