"""Latent attention in MLC's paged cache, for two sequences: the second one has nothing cached."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from schedules import twins

from ..bounds import Bound, Written
from ..subject import Subject
from .paged import attend, causal_mask, results, scale_of, starts

_PAGE, _CACHED = 16, 37  # tokens of a page; of the first sequence in the cache
_NOTHING = -5.0e4


def latent_rows(k: Subject, n: int) -> Iterator[list[Any]]:
    """q, x, weight, pos, table -> queries, rows."""
    p, weight, table = k.p, k.stored(2), k.stored(4)
    q, x, pos = k.normal(n, p.heads, p.latent + p.rope), k.normal(n, p.x_width), k.integers(p.positions, n)
    latent, key = x[:, p.offset:p.offset + p.latent], x[:, p.offset + p.latent:][:, :p.rope]
    rows = np.concatenate([twins.rms_norm(latent, weight, p.eps), twins.rotate(key, pos, table)], axis=-1)
    bound = Bound.stored(p.dtype, p.latent)
    yield [q, x, weight, pos, table, Written(q.shape, p.dtype, twins.f64(q), bound),
           Written(rows.shape, p.dtype, rows, bound)]


def latent_prefill(k: Subject, n: int) -> Iterator[list[Any]]:
    """q, q_indptr, pages, page_indptr, page_values, length_info -> output, lse; causal, sm_scale."""
    p, dim, first = k.p, k.p.latent + k.p.rope, -(-n // 2)
    q, counts = k.normal(n, p.heads, dim, dtype=p.dtype), [first, n - first]
    for causal in (0, 1):
        lengths = [_CACHED + causal * counts[0], causal * counts[1]]
        used = [-(-length // _PAGE) for length in lengths]
        pages = k.normal(sum(used) + 1, _PAGE, dim, dtype=p.dtype)
        order = k.rng.permutation(len(pages)).astype(np.int32)  # the last one is of no sequence
        found = []
        for part, numbers, length in zip(np.split(q, [first]), np.split(order[:-1], used[:1]), lengths):
            rows = pages[numbers].reshape(-1, 1, dim)[:length]
            found.append(attend(part, rows, rows[..., :p.latent], causal_mask(len(part), length, causal)))
        last = np.array([length - _PAGE * max(count - 1, 0) for length, count in zip(lengths, used)], np.int32)
        yield [q, starts(counts), pages, starts(used), order, last,
               *results(k, *map(np.concatenate, zip(*found))), causal, scale_of(dim)]


def merge_latents(k: Subject, n: int) -> Iterator[list[Any]]:
    """values, lse, those of the cache, more -> merged; every third row has nothing in the cache."""
    p = k.p
    values, cached = (k.normal(n, p.heads, p.dim, dtype=p.dtype) for _ in range(2))
    lse, cached_lse = k.normal(n, p.heads), k.normal(n, p.heads)
    cached_lse[::3] = _NOTHING
    for more in (0, 3):
        share = 1 / (1 + np.exp2(np.minimum(twins.f64(cached_lse) - lse, 60)))[..., None] if more else 0.0
        merged = twins.f64(values) * share + twins.f64(cached) * (1 - share)
        yield [values, lse, cached, cached_lse, more, Written(values.shape, p.dtype, merged, Bound.stored(p.dtype))]
