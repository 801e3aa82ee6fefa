"""Attention in the slots of MLC's paged cache, for two sequences: the second one has nothing cached."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from schedules import twins

from ..bounds import Bound, Written
from ..subject import Subject, written

_PAGE, _CACHED = 16, 37  # tokens of a page; of the first sequence in the cache
_NOTHING = -5.0e4
_LOG2_E = float(np.log2(np.e))


def paged_decode(k: Subject, n: int) -> Iterator[list[Any]]:
    """q, pages, page_indptr, page_values, length_info, two unused -> output, lse; scalars."""
    lengths = [1 + t % 40 for t in range(n)]
    q, pages = _queries(k, n), _Pages(k, lengths)
    outputs, lse = zip(*(attend(q[t:t + 1], *pages.rows(t), np.ones((1, lengths[t]), bool)) for t in range(n)))
    yield [q, *pages.arguments, *_unused(n, n), *results(k, np.concatenate(outputs), np.concatenate(lse)), *_scalars(k)]


def paged_prefill(k: Subject, n: int) -> Iterator[list[Any]]:
    """q, q_indptr, pages, page_indptr, page_values, length_info, two unused -> output, lse; causal, scalars, tree."""
    first = -(-n // 2)
    counts, q = [first, n - first], _queries(k, n)
    for causal in (None,) if k.p.tree else (0, 1):
        lengths = [_CACHED + (0 if causal == 0 else counts[0]), 0 if causal == 0 else counts[1]]
        pages = _Pages(k, lengths)
        parts = list(zip(np.split(q, [first]), map(pages.rows, range(2)), strict=True))
        tree = _Tree(counts, lengths) if k.p.tree else None
        found = [attend(part, *rows, tree.seen(i) if tree else causal_mask(len(part), length, causal))
                 for i, ((part, rows), length) in enumerate(zip(parts, lengths, strict=True))]
        yield [q, starts(counts), *pages.arguments, *_unused(2, n), *results(k, *map(np.concatenate, zip(*found))),
               *([] if tree else [causal]), *_scalars(k), *(tree.arguments if tree else [])]


def ragged_prefill(k: Subject, n: int) -> Iterator[list[Any]]:
    """q, q_indptr, keys, values, kv_indptr, unused, tree or unused -> output, lse; causal, scalars. Latents are given
    as keys and values alike."""
    p, first = k.p, -(-n // 2)
    counts, q = [first, n - first], _queries(k, n)
    keys = k.normal(n, p.kv_heads, p.dim, dtype=p.dtype)
    values = keys if p.latent else k.normal(n, p.kv_heads, p.dim, dtype=p.dtype)
    tree = _Tree(counts, counts) if p.tree else None
    for causal in (None,) if tree else (0, 1):
        parts = zip(*(np.split(array, [first]) for array in (q, keys, values[..., :p.latent or p.dim])), strict=True)
        found = [attend(*part, tree.seen(i) if tree else causal_mask(counts[i], counts[i], causal))
                 for i, part in enumerate(parts)]
        yield [q, starts(counts), keys, values, starts(counts), *_unused(n),
               *(tree.arguments if tree else _unused(2)), *results(k, *map(np.concatenate, zip(*found))),
               *([] if tree else [causal]), *_scalars(k)]


def merge_state(k: Subject, n: int) -> Iterator[list[Any]]:
    """values, lse, those of another set of keys; every third row has nothing there."""
    p = k.p
    values, others = (k.normal(n, p.heads, p.dim, dtype=p.dtype) for _ in range(2))
    lse, other_lse = k.normal(n, p.heads), k.normal(n, p.heads)
    other_lse[::3] = _NOTHING
    shares = np.exp2(np.stack([twins.f64(lse), twins.f64(other_lse)]))
    whole = shares.sum(0)
    merged = sum(twins.f64(part) * (share / whole)[..., None] for part, share in zip((values, others), shares))
    yield [Written(values.shape, p.dtype, merged, Bound.stored(p.dtype), before=values),
           Written(lse.shape, "float32", np.log2(whole), Bound.exact(), before=lse), others, other_lse]


class _Pages:
    """Pages of random keys and values for sequences of ``lengths``, in any order."""

    def __init__(self, k: Subject, lengths: list[int]) -> None:
        p, counts = k.p, [-(-length // _PAGE) for length in lengths]
        total = sum(counts) + 1
        self._pages = k.normal(total, 2, p.kv_heads, _PAGE, p.dim, dtype=p.dtype)
        self._order, self._counts, self._lengths = k.rng.permutation(total)[1:].astype(np.int32), counts, lengths
        last = np.array([length - _PAGE * max(count - 1, 0) for length, count in zip(lengths, counts)], np.int32)
        # An empty tensor has no memory that a kernel could be given.
        self.arguments = [self._pages, starts(counts), np.append(self._order, np.int32(0)), last]

    def rows(self, sequence: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values [length, kv_heads, dim] of a sequence."""
        start = sum(self._counts[:sequence])
        own = self._pages[self._order[start:start + self._counts[sequence]]]
        keys, values = own.transpose(1, 0, 3, 2, 4).reshape(2, -1, *own.shape[2:3], own.shape[4])
        return keys[:self._lengths[sequence]], values[:self._lengths[sequence]]


class _Tree:
    """Of each sequence the new tokens as a tree: the first half a chain, the others children of the root, in the order
    of a walk. The cached tokens before them are seen by all."""

    def __init__(self, counts: list[int], lengths: list[int]) -> None:
        self._counts, self._lengths = counts, lengths
        orders = []
        for count in counts:
            chain = -(-count // 2)
            order = [[i, chain] for i in range(chain)] + [[i, i + 1] for i in range(chain, count)]
            if order:
                order[0][1] = count
            orders += order
        self.arguments = [starts(counts), np.array(orders, np.int32).reshape(-1, 2)]
        self._orders = np.split(self.arguments[1], np.cumsum(counts)[:-1])

    def seen(self, sequence: int) -> np.ndarray:
        """bool [count, length]."""
        order, cached = self._orders[sequence], self._lengths[sequence] - self._counts[sequence]
        entered, left = order[:, 0], order[:, 1]
        tree = (entered[:, None] >= entered[None]) & (entered[:, None] < left[None])
        return np.concatenate([np.ones((len(order), cached), bool), tree], axis=1)


def causal_mask(count: int, length: int, causal: int) -> np.ndarray:
    """Which of ``length`` tokens each of the last ``count`` of them sees: those up to itself, or all."""
    seen = np.ones((count, length), bool)
    return np.tril(seen, length - count) if causal else seen


def attend(q: np.ndarray, keys: np.ndarray, values: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Output [n, heads, values' columns] and the base-2 logarithm of the softmax's sum [n, heads]."""
    n, heads, dim = q.shape
    if not seen.any():
        return np.zeros((n, heads, values.shape[-1])), np.full((n, heads), _NOTHING)
    keys_by_head = np.repeat(twins.f64(keys), heads // keys.shape[1], axis=1)
    scores = np.einsum("nhr,shr->nhs", twins.f64(q), keys_by_head) * scale_of(dim)
    scores = np.where(seen[:, None], scores, -np.inf)
    top = scores.max(-1)
    lse = (top + np.log(np.exp(scores - top[..., None]).sum(-1))) * _LOG2_E
    return twins.attention(q, keys, values, seen, scale_of(dim)).reshape(n, heads, -1), lse


def results(k: Subject, output: np.ndarray, lse: np.ndarray) -> list[Written]:
    """What a kernel is to write of both."""
    dtype, terms = k.p.dtype, 3 * output.shape[-1]
    return [Written(output.shape, dtype, output, Bound.stored(dtype, terms)), written(lse, Bound.exact(terms))]


def scale_of(dim: int) -> float:
    """What scores are multiplied by, as kernels are given it."""
    return float(np.float32(dim**-0.5))


def starts(counts: list[int]) -> np.ndarray:
    """Where each of several runs begins, and the end."""
    return np.cumsum([0, *counts]).astype(np.int32)


def _queries(k: Subject, n: int) -> np.ndarray:
    return k.normal(n, k.p.heads, k.p.dim, dtype=k.p.dtype)


def _scalars(k: Subject) -> list[Any]:
    """rotary_mode, rope_scale, rope_theta, sm_scale."""
    return [0, 1.0, 10000.0, scale_of(k.p.dim)]


def _unused(*counts: int) -> list[np.ndarray]:
    return [np.zeros(count, np.int32) for count in counts]
