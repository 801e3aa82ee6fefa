"""Kernels that write the key-value cache: rows that they must not write keep their bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from schedules import twins
from schedules.tiles import MAX_TREE_NODES

from ..bounds import Bound, Written
from ..subject import Subject

_DISTINCT = 1021  # rows; more than any tree or chunk could confuse


def append_latent(k: Subject, n: int) -> Iterator[list[Any]]:
    """cache, x, weight, pos, table, past."""
    p, weight, table = k.p, k.stored(2), k.stored(4)
    x, pos = k.normal(n, p.x_width), k.integers(p.positions, n)
    latent, key = (x[:, p.offset:][:, first:first + size] for first, size in ((0, p.latent), (p.latent, p.rope)))
    rows = np.concatenate([twins.rms_norm(latent, weight, p.eps), twins.rotate(key, pos, table)], axis=-1)[:, None]
    for past in _starts(p.slots, n):
        yield [_appended(k, rows, past, Bound.stored(p.cache_dtype, p.latent)), x, weight, pos, table, past]


def append_heads(k: Subject, n: int) -> Iterator[list[Any]]:
    """cache, x, pos, table, past."""
    p, table = k.p, k.stored(3)
    x, pos = k.normal(n, p.x_width), k.integers(p.positions, n)
    both = x[:, p.offset:p.offset + 2 * p.kv_heads * p.head_dim].reshape(n, 2, p.kv_heads, p.head_dim)
    rows = np.concatenate([twins.rotate(both[:, 0], pos, table), both[:, 1]], axis=-1)
    for past in _starts(p.slots, n):
        yield [_appended(k, rows, past, Bound.stored(p.cache_dtype)), x, pos, table, past]


def commit(k: Subject, n: int) -> Iterator[list[Any]]:
    """cache, idx, past; a path has at most as many nodes as a tree."""
    p = k.p
    if n > MAX_TREE_NODES:
        return
    idx = np.sort(k.rng.choice(MAX_TREE_NODES, n, replace=False)).astype(np.int32)
    for past in _starts(p.slots, MAX_TREE_NODES):
        before = _filled(k, p.kv_heads, p.width)
        yield [Written(before.shape, p.cache_dtype, before[past + idx], mask=_slots(p.slots, past, n), before=before),
               idx, past]


def _starts(slots: int, n: int) -> list[int]:
    """Where to write: at the beginning, somewhere, at the very end."""
    return sorted({0, min(5, slots - n), slots - n})


def _slots(slots: int, past: int, n: int) -> np.ndarray:
    return (np.arange(slots) >= past) & (np.arange(slots) < past + n)


def _appended(k: Subject, rows: np.ndarray, past: int, bound: Bound) -> Written:
    before = _filled(k, *rows.shape[1:])
    return Written(before.shape, k.p.cache_dtype, rows, bound, _slots(k.p.slots, past, len(rows)), before)


def _filled(k: Subject, *row: int) -> np.ndarray:
    """A cache of random rows, which repeat: a window may have many."""
    return np.resize(k.normal(min(k.p.slots, _DISTINCT), *row, dtype=k.p.cache_dtype), (k.p.slots, *row))
