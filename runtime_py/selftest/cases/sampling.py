"""Kernels with which MLC's engine has a device choose tokens. Shares and limits lie in the middle of what they are to
find, as sums in float32 end elsewhere than the twins'."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from schedules import twins

from ..bounds import Bound, Written
from ..subject import Subject, same, written

_PART, _DIGITS = 1024, 16  # of sort_pass


def multinomial(k: Subject, n: int) -> Iterator[list[Any]]:
    """probs, shares, rows -> tokens."""
    probs, rows = _probs(k, n), k.integers(n, n + 2)
    shares = likely_shares(k.rng, probs[rows])
    yield [probs, shares, rows, same(twins.multinomial(probs[rows], shares))]


def sample_top_p(k: Subject, n: int) -> Iterator[list[Any]]:
    """probs, names, shares, rows, top_p -> tokens."""
    probs, names = _ranked(_probs(k, n))
    rows, top_p = k.integers(n, n + 2), limits_between(k.rng, probs)
    kept = np.arange(k.p.vocab)[None] < twins.top_p_sizes(probs, top_p)[:, None]
    nuclei = np.where(kept, probs, 0)[rows]
    shares = likely_shares(k.rng, nuclei)
    places = twins.multinomial(nuclei, shares)
    yield [probs, names, shares, rows, top_p, same(names[rows, places])]


def take_probs(k: Subject, n: int) -> Iterator[list[Any]]:
    """probs, names, rows, tokens, offsets -> chosen, ranked_probs, ranked: up to 5 ranks of a row."""
    probs, vocab = _probs(k, n), k.p.vocab
    _, names = _ranked(probs)
    rows, tokens = k.integers(n, n + 2), k.integers(vocab, n + 2)
    offsets = (np.arange(n)[:, None] * vocab + np.arange(min(5, vocab))[None]).reshape(-1).astype(np.int32)
    ranked = names.reshape(-1)[offsets]
    yield [probs, names, rows, tokens, offsets, same(probs[rows, tokens]), same(probs[offsets // vocab, ranked]),
           same(ranked)]


def renormalize_top_p(k: Subject, n: int) -> Iterator[list[Any]]:
    """probs, top_p -> result; in every second row the last one kept has equals."""
    probs = _probs(k, n)
    top_p = limits_between(k.rng, _ranked(probs)[0])
    for row in range(0, n, 2):
        last = twins.renormalize_top_p(probs[row:row + 1], top_p[row:row + 1])[0]
        smallest = probs[row][last > 0].min()
        probs[row, np.flatnonzero(last == 0)[:2]] = smallest
    yield [probs, top_p, written(twins.renormalize_top_p(probs, top_p), Bound.exact(k.p.vocab))]


def sort_pass(k: Subject, n: int) -> Iterator[list[Any]]:
    """values, tokens, shift -> sorted, names, counts."""
    values, vocab = _probs(k, n), k.p.vocab
    tokens = np.tile(np.arange(vocab, dtype=np.int32), (n, 1))
    given = tokens if k.p.first else k.rng.permuted(tokens, axis=1)
    for shift in (0, 20, 28):
        digits = values.view(np.int32) >> shift & (_DIGITS - 1)
        counts = [[[(part == digit).sum() for part in np.split(row, range(_PART, vocab, _PART))]
                   for digit in range(_DIGITS)] for row in digits]
        yield [values, *([] if k.p.first else [given]), shift, *map(same, twins.sort_pass(values, given, shift)),
               same(np.array(counts, np.int32))]


def verify_drafts(k: Subject, n: int) -> Iterator[list[Any]]:
    """probs, nodes, draft_probs, tokens, first_child, next_sibling, shares: two trees if there are two nodes."""
    probs, draft_probs = _probs(k, n), _probs(k, n)
    roots = np.array([0, n // 2][:n], np.int32)
    parents = np.full(n, -1)
    for root, end in zip(roots, [*roots[1:], n]):
        for node in range(root + 1, end):
            parents[node] = k.rng.integers(root, node)
    children, siblings = first_children(parents)
    tokens = twins.multinomial(draft_probs, k.rng.random(n, np.float32))
    shares = k.rng.random(n, np.float32)
    after, nodes = twins.verify_drafts(probs, roots, draft_probs, tokens, children, siblings, shares)
    changed = (after != probs).any(-1)
    yield [Written(probs.shape, "float32", after[changed], Bound.exact(k.p.vocab), changed, probs),
           Written(nodes.shape, "int32", nodes, before=roots), draft_probs, tokens, children, siblings, shares]


def first_children(parents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By node its first child and its next sibling, -1 for none. int32 [n] each; ``parents``: -1 for roots."""
    children, siblings = (np.full(len(parents), -1, np.int32) for _ in range(2))
    for node in range(len(parents) - 1, -1, -1):
        if parents[node] >= 0:
            siblings[node], children[parents[node]] = children[parents[node]], node
    return children, siblings


def _probs(k: Subject, n: int) -> np.ndarray:
    """Distributions float32 [n, vocab]; every third token is impossible, some are equal."""
    logits = 2 * k.normal(n, k.p.vocab)
    logits[:, ::3] = -np.inf
    logits[:, 1:9:3] = 0.5
    weights = np.exp(logits)
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def _ranked(probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In falling order, and their tokens."""
    names = np.argsort(-probs, axis=-1, kind="stable").astype(np.int32)
    return np.take_along_axis(probs, names, -1), names


def likely_shares(rng: np.random.Generator, probs: np.ndarray) -> np.ndarray:
    """For each row [s, V] one that chooses some likely token, 0 for the first row."""
    sums, likely = twins.f64(probs).cumsum(-1), probs > 0.3 * probs.max(-1, keepdims=True)
    tokens = np.array([rng.choice(np.flatnonzero(row)) for row in likely])
    rows = np.arange(len(probs))
    shares = (sums[rows, tokens] - 0.5 * probs[rows, tokens]) / sums[:, -1]
    shares[0] = 0
    return shares.astype(np.float32)


def limits_between(rng: np.random.Generator, ranked: np.ndarray) -> np.ndarray:
    """A sum to reach for each row [b, V], whose numbers fall: between those of some number of tokens and of one more; 1
    for every third."""
    sums = twins.f64(ranked).cumsum(-1)
    sizes = rng.integers(1, min(20, ranked.shape[1] // 4), len(ranked))
    limits = (sums[np.arange(len(ranked)), sizes - 1] + sums[np.arange(len(ranked)), sizes]) / 2
    limits[2::3] = 1
    return limits.astype(np.float32)
