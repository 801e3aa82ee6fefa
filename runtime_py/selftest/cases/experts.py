"""The router, the union of active experts, and their projections, for unions of several sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from schedules import activations, twins

from ..bounds import Bound
from ..subject import Subject, poisoned_experts, same, written, written_rows

SHARES = (0.0, 0.1, 1.0)  # of the pairs of a token and an expert


def router(k: Subject, n: int) -> Iterator[list[Any]]:
    """x, input norm's weight, w, router norm's weight if there is one -> h, scores."""
    p = k.p
    x, input_weight = k.normal(n, p.hidden), k.stored(1)
    weight = [k.stored(3)] if p.norm == "rms" else []
    h, scores = twins.router(x, input_weight, k.matrix(2, p.dtype, p.experts, p.hidden), p.norm, p.eps, p.norm_scale,
                             *(weight or [None]))
    terms = 2 * p.hidden + p.experts
    yield [x, input_weight, k.stored(2), *weight, written_rows(h, p.activations, Bound.exact(p.hidden)),
           written(scores, Bound.exact(terms))]


def union(k: Subject, n: int) -> Iterator[list[Any]]:
    """scores -> ids, count, uses, tokens."""
    for share in SHARES:
        scores = k.scores(n, share)
        yield [scores, *map(same, twins.union(np.ones_like(scores) if k.p.dense else scores))]


def sparse_up(k: Subject, n: int) -> Iterator[list[Any]]:
    """x, scores, ids, count, uses, tokens, w -> act; only active pairs may be written, weights of idle experts are
    NaN."""
    p = k.p
    x, values = k.rows(n, p.inputs)
    w = k.matrix(6, p.weight_format, p.expert_size, p.inputs)
    for share in SHARES:
        scores = k.scores(n, share)
        _, _, uses, _ = union = twins.union(scores)
        act = [np.zeros((0, p.expert_size))]  # by place in the union, then by token
        for expert, users in _users(*union):
            act.append(twins.sparse_up(values[users], scores[users][:, [expert]], w[[expert]])[:, 0])
        stored = poisoned_experts(k.stored(6), ~(scores != 0).any(axis=0))
        pairs = np.arange(n) < uses[:, None]
        yield [x, scores, *union, stored, written_rows(np.concatenate(act), p.activations, Bound.exact(p.inputs), pairs,
                                                       (p.experts, n))]


def sparse_down(k: Subject, n: int) -> Iterator[list[Any]]:
    """act, ids, count, uses, tokens, w, residual -> y; act and weights are NaN where no token uses the expert."""
    p = k.p
    w = k.matrix(5, p.weight_format, p.outputs, p.expert_size)
    residual = k.normal(n, p.outputs)
    for share in SHARES:
        scores = k.scores(n, share)
        union = twins.union(scores)
        shape, dtype = activations.activation_shape(p.activations, (p.experts, n, p.expert_size))
        act = np.full(shape, np.nan, np.float32).view(dtype)
        y, terms = twins.f64(residual), 0
        for place, (expert, users) in enumerate(_users(*union)):
            act[place, :len(users)], values = k.rows(len(users), p.expert_size)
            y[users] = twins.sparse_down(values[:, None], w[[expert]], y[users], p.residual_scale)
            terms += p.expert_size
        stored = poisoned_experts(k.stored(5), ~(scores != 0).any(axis=0))
        yield [act, *union, stored, residual, written(y, Bound.exact(terms))]


def _users(ids: np.ndarray, count: np.ndarray, uses: np.ndarray,
           tokens: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The experts of a union in order, each with the tokens that use it."""
    for place in range(count[0]):
        yield int(ids[place]), tokens[place, :uses[place]]
