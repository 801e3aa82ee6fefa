"""Kernels of the functions that MLC's engine calls around the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from schedules import activations, twins

from ..bounds import Bound, Written
from ..subject import Subject, same, written


def row_numbers(k: Subject, n: int) -> Iterator[list[Any]]:
    """first, rows."""
    for first in (0, 7):
        yield [first, same(np.arange(first, first + n, dtype=np.int32))]


def rope_heads(k: Subject, n: int) -> Iterator[list[Any]]:
    """x, pos, table -> y."""
    p = k.p
    heads, table = p.rotated + p.kept, k.normal(p.positions, p.dim)
    x, pos = k.normal(n, heads * p.dim), k.integers(p.positions, n)
    expected = twins.rope_heads(x.reshape(n, heads, p.dim), pos, table, p.rotated)
    yield [x, pos, table, Written(expected.shape, p.dtype, expected, Bound.stored(p.dtype))]


def latent_heads(k: Subject, n: int) -> Iterator[list[Any]]:
    """q, x, weight, pos, table -> y."""
    p, weight, table = k.p, k.stored(2), k.stored(4)
    q, x, pos = k.normal(n, p.heads, p.latent + p.rope), k.normal(n, p.x_width), k.integers(p.positions, n)
    latent, key = x[:, p.offset:p.offset + p.latent], x[:, p.offset + p.latent:][:, :p.rope]
    row = np.concatenate([twins.rms_norm(latent, weight, p.eps), twins.rotate(key, pos, table)], axis=-1)[:, None]
    expected = np.concatenate([twins.f64(q), row, row], axis=1)
    yield [q, x, weight, pos, table, Written(expected.shape, p.dtype, expected, Bound.stored(p.dtype, p.latent))]


def expanded_heads(k: Subject, n: int) -> Iterator[list[Any]]:
    """q, keys, values, x, pos, table -> y."""
    p, table = k.p, k.stored(5)
    q, keys, values = (k.normal(n, p.heads * width) for width in (p.nope + p.rope, p.nope, p.v_dim))
    x, pos = k.normal(n, p.x_width), k.integers(p.positions, n)
    expected = twins.expanded_heads(*(tensor.reshape(n, p.heads, -1) for tensor in (q, keys, values)),
                                    x[:, p.offset:p.offset + p.rope], pos, table)
    yield [q, keys, values, x, pos, table, Written(expected.shape, p.dtype, expected, Bound.stored(p.dtype))]


def value_up(k: Subject, n: int) -> Iterator[list[Any]]:
    """x, v_up -> y."""
    p = k.p
    x = k.normal(n, p.heads, p.width, dtype=p.dtype)
    values = activations.recode(x[..., :p.latent], p.activations)
    expected = twins.linear_heads(values, k.matrix(1, p.weight_format, p.v_dim, p.latent)).reshape(n, -1)
    yield [x, k.stored(1), written(expected, Bound.recoded(p.activations, p.latent))]


def widen(k: Subject, n: int) -> Iterator[list[Any]]:
    """x -> y."""
    p = k.p
    x = k.normal(n, p.heads, p.width, dtype=p.dtype)
    yield [x, same(x[..., :p.kept].astype(np.float32).reshape(n, -1))]


def softmax_with_temperature(k: Subject, n: int) -> Iterator[list[Any]]:
    """logits, temperature -> probs; every third row is cold, every fourth has equal largest logits."""
    logits, temperature = 3 * k.normal(n, k.p.vocab), k.rng.uniform(0.2, 2.0, n).astype(np.float32)
    temperature[::3] = 1e-6
    logits[::4, :2] = logits[::4].max(-1, keepdims=True)
    probs = twins.softmax_with_temperature(logits, temperature)
    yield [logits[:, None], temperature, written(probs[:, None], Bound.exact(k.p.vocab))]


def apply_logit_bias(k: Subject, n: int) -> Iterator[list[Any]]:
    """logits, rows, tokens, bias."""
    logits, rows, tokens = _marked(k, n)
    bias = k.normal(len(rows))
    after = twins.f64(logits)
    after[rows, tokens] += bias
    yield [_changed(logits, after), rows, tokens, bias]


def apply_penalty(k: Subject, n: int) -> Iterator[list[Any]]:
    """logits, seq_ids, places, tokens, counts, penalties: every second row is penalised."""
    logits, rows, tokens = _marked(k, n, step=2)
    seq_ids = np.unique(rows)
    places = np.searchsorted(seq_ids, rows).astype(np.int32)
    counts = k.rng.integers(1, 5, len(rows), np.int32)
    penalties = k.rng.uniform(0.1, 1.5, (len(seq_ids), 3)).astype(np.float32)
    after = twins.apply_penalty(logits, rows, tokens, counts, penalties[places])
    yield [_changed(logits, after), seq_ids, places, tokens, counts, penalties]


def apply_bitmask(k: Subject, n: int) -> Iterator[list[Any]]:
    """logits, rows, bits: half of the rows are masked, in any order."""
    logits, rows = k.normal(n, k.p.vocab), k.rng.permutation(n)[:-(-n // 2)].astype(np.int32)
    bits = k.rng.integers(-2**31, 2**31, (n, -(-k.p.vocab // 32))).astype(np.int32)
    yield [_changed(logits, twins.apply_bitmask(logits, rows, bits)), rows, bits]


def whole_vocabulary(k: Subject, n: int) -> Iterator[list[Any]]:
    """x, places -> y: the listed tokens in any order."""
    p = k.p
    x, places = k.normal(n, p.listed), np.full(p.vocab, -1, np.int32)
    places[k.rng.permutation(p.vocab)[:p.listed]] = np.arange(p.listed, dtype=np.int32)
    yield [x, places, written(twins.whole_vocabulary(x, places), Bound.exact())]


def gather_rows(k: Subject, n: int) -> Iterator[list[Any]]:
    """target, source, rows."""
    source, rows = k.normal(n + 2, k.p.width, dtype=k.p.dtype), k.integers(n + 2, n)
    yield [same(source[rows]), source, rows]


def scatter_rows(k: Subject, n: int) -> Iterator[list[Any]]:
    """target, source, rows."""
    source, before = (k.normal(count, k.p.width, dtype=k.p.dtype) for count in (n, n + 2))
    rows = k.rng.permutation(n + 2)[:n].astype(np.int32)
    mask = np.isin(np.arange(n + 2), rows)
    yield [Written(before.shape, k.p.dtype, source[np.argsort(rows)], mask=mask, before=before), source, rows]


def _marked(k: Subject, n: int, step: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, and up to three different tokens of every ``step``-th row: their rows and columns."""
    rows = np.repeat(np.arange(0, n, step, dtype=np.int32), min(3, k.p.vocab))
    columns = [k.rng.choice(k.p.vocab, min(3, k.p.vocab), replace=False) for _ in range(0, n, step)]
    return k.normal(n, k.p.vocab), rows, np.concatenate(columns).astype(np.int32)


def _changed(before: np.ndarray, after: np.ndarray) -> Written:
    """Float32 numbers changed in place: those whose value stays keep their bits."""
    mask = after != before
    return Written(before.shape, "float32", after[mask], Bound.exact(), mask, before)
