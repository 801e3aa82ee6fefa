"""Union kernel: which experts at least one token uses, and which tokens use them."""

import numpy as np
import pytest
from harness import TOKENS, Out, gappy_scores, run
from hypothesis import given, settings
from hypothesis import strategies as st

from schedules import cpu, twins
from targets.cpu import cpu_target

TARGET = cpu_target()


def call(target, scores, dense=False):
    tokens, experts = scores.shape
    return run(cpu.union(experts, dense=dense), target, scores, Out((experts,), "int32"), Out((1,), "int32"),
               Out((experts,), "int32"), Out((experts, tokens), "int32"))


@pytest.mark.parametrize("experts", [1, 20, 40, 1024])
def test_union(target, rng, experts):
    for tokens in TOKENS:
        for share in (0.0, 0.5 / tokens, 0.3, 1.0):
            scores = gappy_scores(rng, tokens, experts, share)
            for found, expected in zip(call(target, scores), twins.union(scores)):
                assert np.array_equal(found, expected)


def test_dense_lists_every_pair(target, rng):
    ids, count, uses, tokens = call(target, gappy_scores(rng, 130, 20, 0.1), dense=True)
    assert np.array_equal(ids, np.arange(20)) and count.tolist() == [20]
    assert (uses == 130).all() and (tokens == np.arange(130)).all()


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 140), st.lists(st.tuples(
    st.integers(0, 139), st.integers(0, 6), st.sampled_from([-0.0, 1.0, -1.0, 1e-45, -1e-45])), max_size=20))
def test_union_is_an_or(tokens, entries):
    """Any non-zero score counts: negative ones, and the smallest subnormal."""
    scores = np.zeros((tokens, 7), "float32")
    for token, expert, score in entries:
        scores[token % tokens, expert] = score
    ids, (count,), uses, users = call(TARGET, scores)
    active = scores != 0
    assert ids[:count].tolist() == np.flatnonzero(active.any(axis=0)).tolist()
    assert (ids[count:] == -1).all() and (uses[count:] == 0).all()
    for place, expert in enumerate(ids[:count]):
        assert users[place, :uses[place]].tolist() == np.flatnonzero(active[:, expert]).tolist()
