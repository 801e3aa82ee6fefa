"""Router kernel: norm of its input, expert logits, ReLU and the norm over experts."""

import numpy as np
import pytest
from harness import EXACT, MAX_TOKENS, TOKENS, Out, nmse, normal, out_rows, run, same_bits

from schedules import activations, cpu, twins
from schedules.layout import pack_rows

EPS, NORM_SCALE = 1e-5, 2.5


class Case:
    """A router's inputs; tokens 1 to 3 have no active expert, all of them, and logits of zero."""

    def __init__(self, target, rng, experts, hidden, norm, dtype):
        self.target, self.sizes, self.norm, self.dtype = target, (experts, hidden), norm, dtype
        self.x, self.input_weight = normal(rng, MAX_TOKENS, hidden), normal(rng, hidden, dtype=dtype)
        self.input_weight[0] = 1.0
        w = normal(rng, experts, hidden, dtype=dtype)
        w[:, 0] = np.abs(w[:, 0]) + 0.1
        self.x[1:4] = 0.0
        self.x[1, 0], self.x[2, 0] = -1.0, 1.0
        self.w, self.packed = w, pack_rows(w, target.tiles.output_tile, dtype)
        self.weights = [normal(rng, experts, dtype=dtype)] if norm == "rms" else []

    def __call__(self, n, mode="f32"):
        experts, hidden = self.sizes
        func = cpu.router(self.target.tiles, experts, hidden, self.norm, EPS, NORM_SCALE, self.dtype, mode)
        return run(func, self.target, self.x[:n], self.input_weight, self.packed, *self.weights,
                   out_rows(mode, n, hidden), Out((n, experts)))


@pytest.mark.parametrize("norm, dtype", [
    ("rms", "float32"), ("rms", "float16"), ("sum", "float32"), ("none", "float32")])
@pytest.mark.parametrize("experts, hidden", [(1, 96), (40, 45), (56, 32), (128, 96), (130, 33)])
def test_router(target, rng, experts, hidden, norm, dtype):
    case = Case(target, rng, experts, hidden, norm, dtype)
    h, scores = case(MAX_TOKENS)
    expected = twins.router(case.x, case.input_weight, case.w, norm, EPS, NORM_SCALE, *(case.weights or [None]))
    assert nmse(h, expected[0]) <= EXACT and nmse(scores, expected[1]) <= EXACT
    active = twins.linear(expected[0], case.w) > 0
    assert np.array_equal(scores != 0, active), "active means a logit above zero"
    assert not active[[1, 3]].any() and active[2].all()
    for n in TOKENS:
        assert all(same_bits(a, b[:n]) for a, b in zip(case(n), (h, scores))), n


@pytest.mark.parametrize("experts, hidden", [(1, 96), (40, 45), (128, 33)])
def test_scores_do_not_depend_on_the_codes(coded, rng, experts, hidden):
    """Only what the experts multiply is rounded."""
    target, mode = coded
    case = Case(target, rng, experts, hidden, "rms", "float16")
    h, scores = case(MAX_TOKENS)
    encoded = activations.encode(h, mode)
    for n in TOKENS:
        rows, same_scores = case(n, mode)
        assert same_bits(rows, encoded[:n]) and same_bits(same_scores, scores[:n]), n
