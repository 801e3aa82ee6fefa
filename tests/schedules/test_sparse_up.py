"""Sparse up projection: slots of the union, SiLU, score."""

import numpy as np
import pytest
from harness import DTYPES, EXACT, MAX_TOKENS, TOKENS, Out, gappy_scores, nmse, normal, run, same_bits

from schedules import cpu, twins
from schedules.layout import pack_rows
from schedules.tiles import UNION_CHUNK


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("experts, size, hidden", [(1, 8, 32), (20, 24, 96), (40, 40, 32), (5, 128, 96)])
def test_sparse_up(target, rng, experts, size, hidden, dtype):
    func = cpu.sparse_up(target.tiles, experts, hidden, size, dtype)
    x, w = normal(rng, MAX_TOKENS, hidden), normal(rng, experts, size, hidden, dtype=dtype)
    tile = target.tiles.expert_tile(size)

    def call(scores):
        """act by expert id; asserts that the slots of the union are written and no others."""
        n = len(scores)
        ids, counts = twins.union(scores)
        packed = pack_rows(w, tile, dtype)
        packed[~(scores != 0).any(axis=0)] = np.nan
        act = run(func, target, x[:n], scores, ids, counts, packed, Out((n, experts, size), partial=True))
        by_id = np.zeros_like(act)
        for chunk, count in enumerate(counts):
            rows = slice(chunk * UNION_CHUNK, (chunk + 1) * UNION_CHUNK)
            assert np.isfinite(act[rows, :count]).all(), "slot of the union not written"
            assert (act[rows, count:].view(np.uint32) == 0xFFFFFFFF).all(), "slot beyond the union written"
            by_id[rows, ids[chunk, :count]] = act[rows, :count]
        return by_id

    for share in (0.0, 0.02, 0.3, 1.0):
        scores = gappy_scores(rng, MAX_TOKENS, experts, share)
        whole = call(scores)
        assert nmse(whole, twins.sparse_up(x, scores, w)) <= EXACT
        assert not whole[scores == 0].any(), "an inactive expert contributes an exact zero"
        for n in TOKENS:
            assert np.array_equal(call(scores[:n]), whole[:n])
            assert same_bits(call(scores[:n])[scores[:n] != 0], whole[:n][scores[:n] != 0])


def test_silu_of_large_inputs(target):
    """x * sigmoid(x) neither overflows nor turns NaN far from zero."""
    func = cpu.sparse_up(target.tiles, 1, 32, 8, "float32")
    values = np.float32([-1e4, -200, -88, -87, -10, -1e-30, 0, 1e-30, 10, 88, 200, 1e4])
    x = np.zeros((len(values), 32), "float32")
    x[:, 0] = values
    w = np.ones((1, 8, 32), "float32")
    ones = np.ones((len(values), 1), "float32")
    act = run(func, target, x, ones, *twins.union(ones), pack_rows(w, 8), Out((len(values), 1, 8)))
    with np.errstate(over="ignore"):
        expected = twins.sparse_up(x, ones, w)
    np.testing.assert_allclose(act, expected, rtol=1e-6, atol=1e-30)
