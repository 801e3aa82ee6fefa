"""Union, up and down together: sparse equals dense to the last bit, and inactive experts are never read."""

import numpy as np
import pytest
from harness import TOKENS, Out, gappy_scores, nmse, normal, out_rows, poison, run, same_bits, stored_matrix

from schedules import activations, cpu, twins

SCALE = 0.7
CHAINED = 1e-11  # NMSE of two projections, one after the other, for as little as one token
SHAPES = [(40, 24, 96), (130, 8, 32)]


class Ffn:
    """The FFN kernels over random weights of shape experts, expert size, hidden."""

    def __init__(self, kind, rng, shape):
        target, weight_format, mode = kind
        self.target, self.mode = target, mode
        self.experts, self.size, self.hidden = shape
        experts, size, hidden = shape
        self.up_weight, self.packed_up = stored_matrix(
            rng, weight_format, target.tiles.expert_tile(size), experts, size, hidden)
        self.down_weight, self.packed_down = stored_matrix(
            rng, weight_format, target.tiles.output_tile, experts, hidden, size)
        self.up = cpu.sparse_up(target.tiles, experts, hidden, size, weight_format, mode)
        self.down = cpu.sparse_down(target.tiles, experts, hidden, size, weight_format, SCALE, mode)

    def __call__(self, x, scores, residual, dense=False):
        n, target = len(x), self.target
        used = run(cpu.union(self.experts, dense=dense), target, scores, Out((self.experts,), "int32"),
                   Out((1,), "int32"), Out((self.experts,), "int32"), Out((self.experts, n), "int32"))
        act = run(self.up, target, activations.encode(x, self.mode), scores, *used, self.packed_up,
                  out_rows(self.mode, self.experts, n, self.size, partial=True))
        self.act, self.used = act, used
        return run(self.down, target, act, *used, self.packed_down, residual, Out((n, self.hidden)))

    def expected(self, x, scores, residual):
        """Of the last call. Where codes round what is between the projections, as the first one left it."""
        act = twins.sparse_up(x, scores, self.up_weight)
        if self.mode != "f32":
            left, (ids, (count,), uses, tokens) = activations.decode(self.act, self.mode, self.size), self.used
            for place in range(count):
                users = tokens[place, :uses[place]]
                act[users, ids[place]] = left[place, :uses[place]]
        return twins.sparse_down(act, self.down_weight, residual, SCALE)


def patterns(rng, tokens, experts):
    """Scores by name: none, all, a few active; one expert for all tokens; tokens that share none."""
    yield "none", np.zeros((tokens, experts), "float32")
    yield "all", normal(rng, tokens, experts)
    yield "few", gappy_scores(rng, tokens, experts, 0.1)
    yield "all negative", -np.abs(gappy_scores(rng, tokens, experts, 0.3))
    one = np.zeros((tokens, experts), "float32")
    one[:, rng.integers(experts)] = 1.5
    yield "one expert", one
    disjoint = np.zeros((tokens, experts), "float32")
    disjoint[np.arange(tokens), np.arange(tokens) % experts] = -0.5
    yield "disjoint", disjoint


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sparse_equals_dense(kind, rng, shape):
    ffn = Ffn(kind, rng, shape)
    for tokens in TOKENS:
        x, residual = normal(rng, tokens, ffn.hidden), normal(rng, tokens, ffn.hidden)
        for name, scores in patterns(rng, tokens, ffn.experts):
            dense, sparse = ffn(x, scores, residual, dense=True), ffn(x, scores, residual)
            assert same_bits(sparse, dense), (name, tokens)
            assert nmse(sparse, ffn.expected(x, scores, residual)) <= CHAINED, (name, tokens)
            if name == "none":
                assert same_bits(sparse, residual)


def test_weights_of_inactive_experts_are_never_used(kind, rng):
    ffn = Ffn(kind, rng, (20, 24, 96))
    for tokens in (1, 2, 33, 64, 130):
        x, residual = normal(rng, tokens, ffn.hidden), normal(rng, tokens, ffn.hidden)
        scores = gappy_scores(rng, tokens, ffn.experts, 0.3)
        scores[:, rng.permutation(ffn.experts)[:10]] = 0.0
        active = (scores != 0).any(axis=0)
        clean = ffn(x, scores, residual)
        up, down = ffn.packed_up.copy(), ffn.packed_down.copy()
        poison(ffn.packed_up, ~active)
        poison(ffn.packed_down, ~active)
        assert same_bits(ffn(x, scores, residual), clean)
        for packed in (ffn.packed_up, ffn.packed_down):
            expert = rng.choice(np.flatnonzero(active))
            kept = packed[expert].copy()
            poison(packed, expert)
            assert np.isnan(ffn(x, scores, residual)[scores[:, expert] != 0]).all(), "the check itself is blind"
            packed[expert] = kept
        ffn.packed_up, ffn.packed_down = up, down
