"""Kernels that read one matrix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from schedules import twins
from schedules.layout import Q4_BLOCK
from schedules.q4 import unpacked

from ..bounds import Bound
from ..subject import Subject, written

_ROWS = 8192  # of a matrix that are float64 at a time


def linear(k: Subject, n: int) -> Iterator[list[Any]]:
    """x, w (or its blocks of rows), bias and residual if there are such -> y."""
    p, blocks = k.p, _blocks(k, k.p.outputs)
    x, values = k.rows(n, p.inputs)
    parts = []
    for place, rows in enumerate(blocks, 1):
        w = k.matrix(place, p.weight_format, rows, p.inputs)
        parts += [twins.linear(values, w[first:first + _ROWS]) for first in range(0, rows, _ROWS)]
    y = np.concatenate(parts, axis=-1)
    bias = [k.stored(1 + len(blocks))] if p.bias_dtype else []
    if bias:
        y += bias[0]
    residual = [] if p.residual_scale is None else [k.normal(n, p.outputs)]
    if residual:
        y = residual[0] + p.residual_scale * y
    stored = [k.stored(place) for place in range(1, 1 + len(blocks))]
    yield [x, *stored, *bias, *residual, written(y, Bound.exact(p.inputs))]


def linear_heads(k: Subject, n: int) -> Iterator[list[Any]]:
    """x, w -> y."""
    p = k.p
    x, values = k.rows(n, p.inputs)
    y = twins.linear_heads(values[:, None], k.matrix(1, p.weight_format, p.outputs, p.inputs)).reshape(n, -1)
    yield [x, k.stored(1), written(y, Bound.exact(p.inputs))]


def embedding(k: Subject, n: int) -> Iterator[list[Any]]:
    """ids, table (or its blocks of rows) -> y."""
    p, blocks = k.p, _blocks(k, k.p.vocab)
    ids = k.integers(p.vocab, n)
    stored = [k.stored(place) for place in range(1, 1 + len(blocks))]
    rows = np.stack([_row(stored[token // blocks[0]], p.weight_format, token % blocks[0], p.width) for token in ids])
    yield [ids, *stored, written(twins.embedding(np.arange(n), rows, p.scale), Bound.exact())]


def _blocks(k: Subject, rows: int) -> tuple[int, ...]:
    """Rows of the tensors that a matrix consists of; all but the last have as many."""
    return tuple(vars(k.p).get("row_blocks", ())) or (rows,)


def _row(stored: np.ndarray, weight_format: str, row: int, inputs: int) -> np.ndarray:
    tile = stored.shape[-1] if stored.dtype.kind == "f" else Q4_BLOCK
    return unpacked(stored[row // tile][None], weight_format, tile, inputs)[row % tile]
