"""Queries of latent attention, and attention over the cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from schedules import activations, twins
from schedules.tiles import MAX_TREE_NODES

from ..bounds import Bound
from ..subject import Subject, written

_PAST = 75  # cached tokens


def latent_query(k: Subject, n: int) -> Iterator[list[Any]]:
    """x, q_up, k_up, pos, table -> q."""
    p, table = k.p, k.stored(4)
    x, values = k.rows(n, p.inputs)
    pos = k.integers(p.positions, n)
    q_up = k.matrix(1, p.weight_format, p.nope + p.rope, p.inputs)
    k_up = k.matrix(2, p.weight_format, p.latent, p.nope)
    q = twins.linear_heads(values[:, None], q_up)
    absorbed = twins.linear_heads(activations.recode(q[..., :p.nope], p.activations), k_up)
    expected = np.concatenate([absorbed, twins.rotate(q[..., p.nope:], pos, table)], axis=-1)
    yield [x, k.stored(1), k.stored(2), pos, table,
           written(expected, Bound.recoded(p.activations, p.inputs + p.nope))]


def attention(k: Subject, n: int) -> Iterator[list[Any]]:
    """q, cache, visible, ancestors, past, v_up if there is one -> out; slots that no token sees are NaN."""
    p = k.p
    q = k.normal(n, p.heads, p.key_dim)
    for visible, ancestors, past in _masks(k, n):
        seen = twins.seen_slots(visible, ancestors, past, p.slots)
        used = int(np.flatnonzero(seen.any(axis=0))[-1]) + 1
        cache = np.full((p.slots, p.kv_heads, p.width), np.nan, p.cache_dtype)
        cache[:used] = k.normal(used, p.kv_heads, p.width)
        mix = twins.attention(q, cache[:used, :, :p.key_dim], cache[:used, :, p.value_offset:][..., :p.value_dim],
                              seen[:, :used], p.scale)
        cache[~seen.any(axis=0)] = np.nan
        v_up, expected, bound = [], mix, Bound.exact(p.key_dim + used)
        if p.v_dim:
            heads = activations.recode(mix.reshape(n, p.heads, p.value_dim), p.activations)
            v_up = [k.stored(5)]
            expected = twins.linear_heads(heads, k.matrix(5, p.weight_format, p.v_dim, p.value_dim)).reshape(n, -1)
            bound = Bound.recoded(p.activations, p.key_dim + used + p.value_dim)
        yield [q, cache, visible, ancestors, past, *v_up, written(expected, bound)]


def _masks(k: Subject, n: int) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """visible, ancestors, past: a chunk at the beginning, one behind cached tokens, and a tree behind some of them."""
    steps, nobody = np.arange(n, dtype=np.int32), np.zeros((n, 2), np.int32)
    past = min(_PAST, k.p.slots - max(n, MAX_TREE_NODES))
    for start in sorted({0, past}):
        yield start + steps + 1, nobody, start
    if n <= MAX_TREE_NODES:
        yield np.full(n, past // 2, np.int32), _tree(k.rng, n), past


def _tree(rng: np.random.Generator, n: int) -> np.ndarray:
    """Masks int32 [n, 2] of a random tree: each node and its ancestors."""
    masks: list[int] = []
    for node in range(n):
        parent = int(rng.integers(-1, node)) if node else -1
        masks.append(1 << node | (masks[parent] if parent >= 0 else 0))
    return np.array(masks, np.uint64).view(np.int32).reshape(-1, 2)
