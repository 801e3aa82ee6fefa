"""Sparse down projection: sum over the experts of the union, into the residual."""

import numpy as np
import pytest
from harness import MAX_TOKENS, WEIGHT_FORMATS, Out, check_rows, gappy_scores, normal, poison, run, stored_matrix

from schedules import cpu, twins


def by_place(act, ids, count, uses, tokens):
    """act [n, E, D] by token and expert -> [E, n, D] as sparse_up leaves it; NaN where nothing is defined."""
    places = np.full(act.swapaxes(0, 1).shape, np.nan, "float32")
    for place in range(count[0]):
        places[place, :uses[place]] = act[tokens[place, :uses[place]], ids[place]]
    return places


@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("experts, size, outputs", [(1, 8, 32), (20, 24, 96), (40, 40, 32), (5, 128, 96)])
def test_sparse_down(target, rng, experts, size, outputs, share, weight_format):
    scale = 0.7
    func = cpu.sparse_down(target.tiles, experts, outputs, size, weight_format, scale)
    w, packed = stored_matrix(rng, weight_format, target.tiles.output_tile, experts, outputs, size)
    residual = normal(rng, MAX_TOKENS, outputs)
    scores = gappy_scores(rng, MAX_TOKENS, experts, share)
    act = normal(rng, MAX_TOKENS, experts, size) * scores[:, :, None]
    poison(packed, ~(scores != 0).any(axis=0))

    def kernel(n):
        used = twins.union(scores[:n])
        return run(func, target, by_place(act[:n], *used), *used, packed, residual[:n], Out((n, outputs)))

    check_rows(kernel, twins.sparse_down(act, w, residual, scale))
