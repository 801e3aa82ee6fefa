"""Kernels that work row by row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from schedules import twins
from schedules.activations import PLANES

from ..bounds import Bound
from ..subject import Subject, same, written, written_rows


def rms_norm(k: Subject, n: int) -> Iterator[list[Any]]:
    """x, weight, picked if rows are gathered -> y."""
    p = k.p
    x, weight = k.normal(n, p.x_width or p.width), k.stored(1)
    y = twins.rms_norm(x[:, p.offset:p.offset + p.width], weight, p.eps, p.scale)
    for picked in _gathers(k, n):
        yield [x, weight, *picked, written_rows(_gather(y, picked), p.activations, Bound.exact(p.width))]


def encode(k: Subject, n: int) -> Iterator[list[Any]]:
    """x, picked if rows are gathered -> y."""
    p = k.p
    x = k.normal(n, p.width)
    for picked in _gathers(k, n):
        yield [x, *picked, written_rows(_gather(twins.f64(x) * p.scale, picked), p.activations, Bound.exact())]


def gated_silu(k: Subject, n: int) -> Iterator[list[Any]]:
    """x -> y."""
    x = k.normal(n, 2 * k.p.width)
    yield [x, written_rows(twins.gated_silu(x), k.p.activations, Bound.exact())]


def rope_query(k: Subject, n: int) -> Iterator[list[Any]]:
    """x, pos, table -> q."""
    p, table = k.p, k.stored(2)
    x, pos = k.normal(n, p.x_width), k.integers(p.positions, n)
    heads = x[:, :p.heads * p.rope].reshape(n, p.heads, p.rope)
    yield [x, pos, table, written(twins.rotate(heads, pos, table), Bound.exact())]


def top_k(k: Subject, n: int) -> Iterator[list[Any]]:
    """logits, token_ids if there are such -> tokens, log_probs."""
    p = k.p
    logits, token_ids = _logits(k, n), [k.stored(1)] if p.mapped else []
    tokens, log_probs = twins.top_k(logits, p.k, *token_ids)
    yield [logits, *token_ids, same(tokens), written(log_probs, Bound.exact(p.vocab))]


def argmax(k: Subject, n: int) -> Iterator[list[Any]]:
    """logits -> tokens, values."""
    logits = _logits(k, n)
    tokens = logits.argmax(axis=-1).astype(np.int32)  # the first of equal ones
    yield [logits, same(tokens), same(np.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0])]


def accept(k: Subject, n: int) -> Iterator[list[Any]]:
    """logits, text, asked -> accepted. The tree goes on with what is drawn three times out of four; draws are in the
    middle of what a token has of the probability."""
    logits, text = _logits(k, n), k.integers(k.p.vocab, 20)
    for *settings, penalty, seen in ((0.0, 0, 1.0, 1.0, 0), (1.0, 0, 1.0, 1.3, 20), (0.7, 5, 1.0, 1.0, 9),
                                     (1.3, 0, 0.9, 0.8, 1), (2.0, 40, 0.5, 1.5, 20), (0.0, 0, 1.0, 2.0, 20)):
        parents, tokens = np.append(-1, k.integers(n, n)[1:] % np.arange(1, n)), k.integers(k.p.vocab, n)
        uniforms, accepted, node = k.rng.random(n), np.full((2, n), -1, np.int32), 0
        for step in range(n):
            held = [*text[:seen], tokens[0], *accepted[1, :step]]
            probabilities = twins.choose(twins.penalised(logits[node], penalty, held), *settings)
            token = k.rng.choice(len(probabilities), p=probabilities)
            uniforms[step] = probabilities[:token].sum() + probabilities[token] / 2
            accepted[:, step] = node, token
            children = np.flatnonzero(parents == node)
            if len(children) == 0 or k.rng.random() < 0.25:
                tokens[children] = (token + 1) % k.p.vocab
                break
            tokens[children] = token  # the first of equal ones is taken
            node = children[0]
        yield [logits, text, np.concatenate([settings, [penalty, seen], parents, tokens, uniforms]), same(accepted)]


def peak(k: Subject, n: int) -> Iterator[list[Any]]:
    """x, factors, steps -> y. Numbers that float32 holds exactly."""
    if PLANES[k.p.activations]:
        x, factors = k.integers(1000, k.p.width), k.rng.integers(0, 128, 8, np.uint8).view(np.int32)
    else:
        x, factors = k.integers(8, k.p.width).astype(np.float32), np.array([-2, 3], np.float32)
    for steps in (4, 12):
        y = twins.peak(x, factors, steps).astype(x.dtype)
        yield [x, factors, steps, same(np.tile(y, (n, 1)))]


def _logits(k: Subject, n: int) -> np.ndarray:
    """Every second row has many equal ones."""
    logits = 3 * k.normal(n, k.p.vocab)
    logits[1::2] = np.round(logits[1::2])
    return logits


def _gathers(k: Subject, n: int) -> Iterator[list[np.ndarray]]:
    """Rows to pick: the last one, and one more than there are, in any order; no argument if the kernel takes all."""
    if not k.p.gather:
        yield []
    else:
        yield [np.array([n - 1], np.int32)]
        yield [k.integers(n, n + 1)]


def _gather(rows: np.ndarray, picked: list[np.ndarray]) -> np.ndarray:
    return rows[picked[0]] if picked else rows
