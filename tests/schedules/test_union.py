"""Union kernel: which experts at least one token of a chunk uses."""

import numpy as np
import pytest
from harness import TOKENS, Out, gappy_scores, run
from hypothesis import given, settings
from hypothesis import strategies as st

from schedules import cpu, twins
from schedules.tiles import UNION_CHUNK
from targets.cpu import cpu_target

TARGET = cpu_target()


def call(target, scores, dense=False):
    tokens, experts = scores.shape
    chunks = -(-tokens // UNION_CHUNK)
    return run(cpu.union(experts, dense=dense), target, scores, Out((chunks, experts), "int32"),
               Out((chunks,), "int32"))


@pytest.mark.parametrize("experts", [1, 20, 40, 1024])
def test_union(target, rng, experts):
    for tokens in TOKENS:
        for share in (0.0, 0.5 / tokens, 0.3, 1.0):
            scores = gappy_scores(rng, tokens, experts, share)
            for found, expected in zip(call(target, scores), twins.union(scores)):
                assert np.array_equal(found, expected)


def test_dense_lists_every_expert(target, rng):
    ids, counts = call(target, gappy_scores(rng, 130, 20, 0.1), dense=True)
    assert np.array_equal(ids, np.tile(np.arange(20), (3, 1)))
    assert np.array_equal(counts, [20, 20, 20])


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 140), st.lists(st.tuples(
    st.integers(0, 139), st.integers(0, 6), st.sampled_from([-0.0, 1.0, -1.0, 1e-45, -1e-45])), max_size=20))
def test_union_is_an_or(tokens, entries):
    """Any non-zero score counts: negative ones, and the smallest subnormal."""
    scores = np.zeros((tokens, 7), "float32")
    for token, expert, score in entries:
        scores[token % tokens, expert] = score
    ids, counts = call(TARGET, scores)
    for chunk, (listed, count) in enumerate(zip(ids, counts)):
        active = (scores[chunk * UNION_CHUNK:(chunk + 1) * UNION_CHUNK] != 0).any(axis=0)
        assert listed[:count].tolist() == np.flatnonzero(active).tolist()
        assert (listed[count:] == -1).all()
