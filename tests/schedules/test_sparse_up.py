"""Sparse up projection: places of the union, SiLU, score."""

import numpy as np
import pytest
from harness import (
    EXACT,
    MAX_TOKENS,
    TOKENS,
    Out,
    elementwise,
    gappy_scores,
    handed_on,
    nmse,
    normal,
    out_rows,
    poison,
    run,
    same_bits,
    stored_matrix,
)

from schedules import activations, cpu, twins
from schedules.cpu import vector
from schedules.layout import pack_rows


class Case:
    """The kernel of a shape with random inputs and weights."""

    def __init__(self, kind, rng, experts, size, hidden):
        self.kind, self.experts, self.size, self.hidden = kind, experts, size, hidden
        self.func = cpu.sparse_up(kind.target.tiles, experts, hidden, size, kind.weight_format, kind.activations)
        self.x, self.values = handed_on(normal(rng, MAX_TOKENS, hidden), kind.activations)
        self.w, self.packed = stored_matrix(rng, kind.weight_format, kind.target.tiles.expert_tile(size), experts,
                                            size, hidden)

    def __call__(self, scores):
        """Activations by token and expert, 0 for the others; asserts that active pairs are written and no others."""
        n, (ids, _, uses, tokens) = len(scores), twins.union(scores)
        packed = self.packed.copy()
        poison(packed, ~(scores != 0).any(axis=0))
        out = out_rows(self.kind.activations, self.experts, n, self.size, partial=True)
        act = run(self.func, self.kind.target, self.x[:n], scores, *twins.union(scores), packed, out)
        by_id = np.zeros((n, self.experts, *act.shape[2:]), act.dtype)
        untouched = Out.poison(act.dtype)
        for place in range(self.experts):
            written = act[place, :uses[place]]
            assert (written.view("uint32") != untouched).all(), "active pair not written"
            assert (act[place, uses[place]:].view("uint32") == untouched).all(), "another place written"
            by_id[tokens[place, :uses[place]], ids[place]] = written
        return by_id

    def parts(self, scores):
        """The same from the kernel ``linear``, expert by expert, and SiLU."""
        target, weight_format, mode = self.kind
        linear = cpu.linear(target.tiles, self.hidden, self.size, weight_format, mode)
        shape = MAX_TOKENS, self.size
        silu = elementwise(target, MAX_TOKENS * self.size, vector.silu)
        act = np.zeros((MAX_TOKENS, self.experts, self.size), "float32")
        for expert in range(self.experts):
            h = run(linear, target, self.x, self.packed[expert], Out(shape))
            act[:, expert] = run(silu, target, h.reshape(-1), Out((h.size,))).reshape(shape)
        records = activations.encode(act * scores[:, :, None], mode)
        records[scores == 0] = 0
        return records


@pytest.mark.parametrize("experts, size, hidden", [(1, 40, 33), (56, 32, 45), (128, 24, 96)])
def test_sparse_up(kind, rng, experts, size, hidden):
    case = Case(kind, rng, experts, size, hidden)
    for share in (0.0, 0.02, 0.3, 1.0):
        scores = gappy_scores(rng, MAX_TOKENS, experts, share)
        whole = case(scores)
        if kind.activations == "f32":
            assert nmse(whole, twins.sparse_up(case.x, scores, case.w)) <= EXACT
        else:
            assert same_bits(whole, case.parts(scores))
        for n in TOKENS:
            assert same_bits(case(scores[:n]), whole[:n])


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
