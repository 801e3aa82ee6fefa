"""GPU kernels of the feed-forward layers: router, union, sparse projections, gated SiLU, picked rows."""

import numpy as np
import pytest
from gpu_harness import EXACT, TILES, by_family, run, token_counts
from harness import Out, gappy_scores, nmse, normal, poison, stored_matrix

from schedules import gpu, twins
from schedules.layout import pack_rows
from schedules.tiles import GPU_TILES

TOKENS = token_counts("opencl")
SHARES = (0.0, 0.02, 0.3, 1.0)  # of active pairs of token and expert
SHAPES = [("float32", 1, 40, 33), ("q4f32_1", 56, 24, 45), ("q4f32_1", 128, 64, 32),
          ("float16", 40, 16, 45), ("q4f16_1", 40, 40, 32)]  # format, experts, expert size, hidden size


@pytest.mark.parametrize("family, experts, hidden, norm, dtype", [
    ("opencl", 1, 96, "rms", "float32"), ("opencl", 40, 45, "sum", "float32"), ("opencl", 130, 33, "none", "float32"),
    ("generic", 40, 45, "sum", "float32"), ("generic", 128, 64, "rms", "float16"),
    ("adreno", 40, 70, "rms", "float32")])
def test_router(rng, family, experts, hidden, norm, dtype):
    tiles, counts = GPU_TILES[family], token_counts(family)
    eps, scale, most = 1e-5, 2.5, counts[-1]
    x, input_weight = normal(rng, most, hidden), normal(rng, hidden, dtype=dtype)
    input_weight[0] = 1.0
    w = normal(rng, experts, hidden, dtype=dtype)
    w[:, 0] = np.abs(w[:, 0]) + 0.1
    x[1:4] = 0.0  # tokens without an active expert, with all of them, with logits of zero
    x[1, 0], x[2, 0] = -1.0, 1.0
    weights = [normal(rng, experts, dtype=dtype)] if norm == "rms" else []
    h, scores = twins.router(x, input_weight, w, norm, eps, scale, *(weights or [None]))
    active = twins.linear(h, w) > 0
    assert not active[[1, 3]].any() and active[2].all()
    func = gpu.router(tiles, experts, hidden, norm, eps, scale, dtype)
    packed = pack_rows(w, tiles.output_tile, dtype)
    for n in counts:
        rows, found = run(func, x[:n], input_weight, packed, *weights, Out((n, hidden)), Out((n, experts)))
        assert nmse(rows, h[:n]) <= EXACT and nmse(found, scores[:n]) <= EXACT, n
        assert np.array_equal(found != 0, active[:n]), "active means a logit above zero"


def union_outs(experts, n):
    return [Out(shape, "int32") for shape in ((experts,), (1,), (experts,), (experts, n))]


@pytest.mark.parametrize("experts", [1, 40, 128, 1024])
def test_union(rng, experts):
    for n in TOKENS:
        for share in SHARES:
            scores = gappy_scores(rng, n, experts, share)
            for found, expected in zip(run(gpu.union(experts), scores, *union_outs(experts, n)), twins.union(scores)):
                assert np.array_equal(found, expected)


def test_dense_union(rng):
    n, experts = 33, 40
    found = run(gpu.union(experts, dense=True), gappy_scores(rng, n, experts, 0.1), *union_outs(experts, n))
    for actual, expected in zip(found, twins.union(np.ones((n, experts)))):
        assert np.array_equal(actual, expected)


def by_place(act, ids, count, uses, tokens):
    """Activations [n, E, D] by token and expert -> [E, n, D] as sparse_up leaves it; NaN where nothing is defined."""
    places = np.full(act.swapaxes(0, 1).shape, np.nan, "float32")
    for place in range(count[0]):
        places[place, :uses[place]] = act[tokens[place, :uses[place]], ids[place]]
    return places


@pytest.mark.parametrize("family, weight_format, experts, size, hidden", by_family(SHAPES))
def test_sparse_up(rng, family, weight_format, experts, size, hidden):
    """Only active pairs are written; weights of experts outside the union, NaN here, are not read."""
    tiles, counts = GPU_TILES[family], token_counts(family)
    func = gpu.sparse_up(tiles, experts, hidden, size, weight_format)
    w, clean = stored_matrix(rng, weight_format, tiles.expert_tile(size), experts, size, hidden)
    x = normal(rng, counts[-1], hidden)
    for share in SHARES:
        scores = gappy_scores(rng, counts[-1], experts, share)
        act = twins.sparse_up(x, scores, w)
        for n in counts:
            packed, used = clean.copy(), twins.union(scores[:n])
            poison(packed, ~(scores[:n] != 0).any(axis=0))
            found = run(func, x[:n], scores[:n], *used, packed, Out((experts, n, size), partial=True))
            expected = by_place(act[:n], *used)
            assert np.array_equal(np.isnan(found), np.isnan(expected)), "other places than the active pairs written"
            assert nmse(np.nan_to_num(found), np.nan_to_num(expected)) <= EXACT, (share, n)


@pytest.mark.parametrize("family, weight_format, experts, size, hidden", by_family(SHAPES))
def test_sparse_down(rng, family, weight_format, experts, size, hidden):
    """Neither weights of experts outside the union nor activations of inactive pairs, NaN here, are read."""
    tiles, counts = GPU_TILES[family], token_counts(family)
    func = gpu.sparse_down(tiles, experts, hidden, size, weight_format, 0.7)
    w, clean = stored_matrix(rng, weight_format, tiles.output_tile, experts, hidden, size)
    residual = normal(rng, counts[-1], hidden)
    for share in SHARES:
        scores = gappy_scores(rng, counts[-1], experts, share)
        act = normal(rng, counts[-1], experts, size) * (scores != 0)[:, :, None]
        expected = twins.sparse_down(act, w, residual, 0.7)
        for n in counts:
            packed, used = clean.copy(), twins.union(scores[:n])
            poison(packed, ~(scores[:n] != 0).any(axis=0))
            y = run(func, by_place(act[:n], *used), *used, packed, residual[:n], Out((n, hidden)))
            assert nmse(y, expected[:n]) <= EXACT, (share, n)


def test_silu_of_large_inputs():
    """x * sigmoid(x) neither overflows nor turns NaN far from zero."""
    values = np.float32([-1e4, -200, -88, -87, -10, -1e-30, 0, 1e-30, 10, 88, 200, 1e4])
    x = np.stack([values, np.ones_like(values)], axis=1)
    y = run(gpu.gated_silu(TILES, 1), x, Out((len(values), 1)))
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(y, twins.gated_silu(x), rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("width", [45, 300])
def test_gated_silu_and_picked_rows(rng, width):
    for n in (1, 9):
        x = normal(rng, n, 2 * width)
        y = run(gpu.gated_silu(TILES, width), x, Out((n, width)))
        assert nmse(y, twins.gated_silu(x)) <= EXACT
        picked = np.int32([n - 1, 0])
        gathered = run(gpu.encode(TILES, width, "f32", scale=0.5, gather=True), y, picked, Out((2, width)))
        assert np.array_equal(gathered, y[picked] * np.float32(0.5))
    assert np.array_equal(run(gpu.encode(TILES, width, "f32"), y, Out(y.shape)), y)
