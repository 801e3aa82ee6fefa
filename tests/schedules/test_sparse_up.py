"""Sparse up projection: places of the union, SiLU, score."""

import numpy as np
import pytest
from harness import (
    EXACT,
    MAX_TOKENS,
    TOKENS,
    WEIGHT_FORMATS,
    Out,
    gappy_scores,
    nmse,
    normal,
    poison,
    run,
    same_bits,
    stored_matrix,
)

from schedules import cpu, twins
from schedules.layout import pack_rows


@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
@pytest.mark.parametrize("experts, size, hidden", [(1, 8, 32), (20, 24, 96), (40, 40, 32), (5, 128, 96)])
def test_sparse_up(target, rng, experts, size, hidden, weight_format):
    func = cpu.sparse_up(target.tiles, experts, hidden, size, weight_format)
    x = normal(rng, MAX_TOKENS, hidden)
    w, weights = stored_matrix(rng, weight_format, target.tiles.expert_tile(size), experts, size, hidden)

    def call(scores):
        """act by token and expert; asserts that active pairs are written and no others."""
        n = len(scores)
        ids, (count,), uses, tokens = used = twins.union(scores)
        packed = weights.copy()
        poison(packed, ~(scores != 0).any(axis=0))
        act = run(func, target, x[:n], scores, *used, packed, Out((experts, n, size), partial=True))
        by_id = np.zeros((n, experts, size), "float32")
        for place in range(experts):
            assert np.isfinite(act[place, :uses[place]]).all(), "active pair not written"
            assert (act[place, uses[place]:].view(np.uint32) == 0xFFFFFFFF).all(), "another place written"
            by_id[tokens[place, :uses[place]], ids[place]] = act[place, :uses[place]]
        return by_id

    for share in (0.0, 0.02, 0.3, 1.0):
        scores = gappy_scores(rng, MAX_TOKENS, experts, share)
        whole = call(scores)
        assert nmse(whole, twins.sparse_up(x, scores, w)) <= EXACT
        assert not whole[scores == 0].any(), "an inactive expert contributes an exact zero"
        for n in TOKENS:
            assert same_bits(call(scores[:n]), whole[:n])


def test_silu_of_large_inputs(target):
    """x * sigmoid(x) neither overflows nor turns NaN far from zero."""
    func = cpu.sparse_up(target.tiles, 1, 32, 8, "float32")
    values = np.float32([-1e4, -200, -88, -87, -10, -1e-30, 0, 1e-30, 10, 88, 200, 1e4])
    x = np.zeros((len(values), 32), "float32")
    x[:, 0] = values
    w = np.ones((1, 8, 32), "float32")
    ones = np.ones((len(values), 1), "float32")
    act = run(func, target, x, ones, *twins.union(ones), pack_rows(w, 8), Out((1, len(values), 8)))[0]
    with np.errstate(over="ignore"):
        expected = twins.sparse_up(x, ones, w)
    np.testing.assert_allclose(act, expected[:, 0], rtol=1e-6, atol=1e-30)
