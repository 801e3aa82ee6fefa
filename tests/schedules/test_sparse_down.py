"""Sparse down projection: sum over the experts of the union, into the residual."""

import numpy as np
import pytest
from harness import MAX_TOKENS, Out, check_rows, gappy_scores, handed_on, normal, poison, run, stored_matrix

from schedules import cpu, twins


def by_place(act, ids, count, uses, tokens):
    """Activations [n, E, ...] by token and expert -> [E, n, ...] as sparse_up leaves it; NaN (as a float or as a
    record's scale) where nothing is defined."""
    places = np.full(act.swapaxes(0, 1).shape, np.nan, "float32").view(act.dtype)
    for place in range(count[0]):
        places[place, :uses[place]] = act[tokens[place, :uses[place]], ids[place]]
    return places


@pytest.mark.parametrize("experts, size, outputs", [(1, 40, 96), (56, 16, 288), (128, 8, 32)])
def test_sparse_down(kind, rng, experts, size, outputs):
    target, weight_format, mode = kind
    scale = 0.7
    func = cpu.sparse_down(target.tiles, experts, outputs, size, weight_format, scale, mode)
    w, clean = stored_matrix(rng, weight_format, target.tiles.output_tile, experts, outputs, size)
    residual = normal(rng, MAX_TOKENS, outputs)
    for share in (0.0, 0.02, 0.3, 1.0):
        scores = gappy_scores(rng, MAX_TOKENS, experts, share)
        act, values = handed_on(normal(rng, MAX_TOKENS, experts, size) * scores[:, :, None], mode)
        packed = clean.copy()
        poison(packed, ~(scores != 0).any(axis=0))

        def kernel(n):
            used = twins.union(scores[:n])
            return run(func, target, by_place(act[:n], *used), *used, packed, residual[:n], Out((n, outputs)))

        check_rows(kernel, twins.sparse_down(values, w, residual, scale))
