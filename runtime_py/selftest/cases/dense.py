"""Kernels that read one matrix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from schedules import twins
from schedules.layout import Q4_BLOCK

from ..bounds import Bound
from ..subject import Subject, unpacked, written

_ROWS = 8192  # of a matrix that are float64 at a time


def linear(k: Subject, n: int) -> Iterator[list[Any]]:
    """x, w, bias and residual if there are such -> y."""
    p = k.p
    x, values = k.rows(n, p.inputs)
    w = k.matrix(1, p.weight_format, p.outputs, p.inputs)
    bias = [k.stored(2)] if p.bias_dtype else []
    y = np.concatenate([twins.linear(values, w[first:first + _ROWS]) for first in range(0, p.outputs, _ROWS)], axis=-1)
    if bias:
        y += bias[0]
    residual = [] if p.residual_scale is None else [k.normal(n, p.outputs)]
    if residual:
        y = residual[0] + p.residual_scale * y
    yield [x, k.stored(1), *bias, *residual, written(y, Bound.exact(p.inputs))]


def embedding(k: Subject, n: int) -> Iterator[list[Any]]:
    """ids, table -> y."""
    p, stored = k.p, k.stored(1)
    tile = stored.shape[-1] if stored.dtype.kind == "f" else Q4_BLOCK
    ids = k.integers(p.vocab, n)
    tiles = unpacked(stored[ids // tile][:, None], p.weight_format, tile, p.width)
    rows = tiles[np.arange(n), ids % tile]
    yield [ids, stored, written(twins.embedding(np.arange(n), rows, p.scale), Bound.exact())]
