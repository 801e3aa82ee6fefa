"""TLS and CLS against loops written from their definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime_py.sparsity import Sparsity, active_experts, chunk_level_sparsity, token_level_sparsity


def naive_tls(active):
    layers, tokens, experts = active.shape
    inactive = sum(not active[i, t, e] for i in range(layers) for t in range(tokens) for e in range(experts))
    return inactive / (layers * tokens * experts)


def naive_cls(active, window):
    layers, tokens, experts = active.shape
    inactive = count = 0
    for layer in range(layers):
        for start in range(0, tokens - window + 1, window):
            for expert in range(experts):
                count += 1
                inactive += all(not active[layer, t, expert] for t in range(start, start + window))
    return inactive / count if count else None


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 6), st.sampled_from([1, 2, 8, 32]), st.integers(0, 2**32))
def test_figures_equal_naive_loops(layers, tokens, experts, window, seed):
    active = np.random.default_rng(seed).random((layers, tokens, experts)) < 0.2
    assert token_level_sparsity(active) == pytest.approx(naive_tls(active), abs=1e-12)
    found, expected = chunk_level_sparsity(active, window), naive_cls(active, window)
    assert found == (expected if expected is None else pytest.approx(expected, abs=1e-12))


def test_negative_scores_are_active_and_the_threshold_is_a_magnitude():
    scores = np.array([[[0.0, -0.5, 0.2, 1.0]]], np.float32)
    assert active_experts(scores).tolist() == [[[False, True, True, True]]]
    assert active_experts(scores, 0.2).tolist() == [[[False, True, False, True]]]  # strictly above, in float32


def test_measure_counts_per_token():
    active = np.zeros((1, 9, 4), bool)
    active[0, 0, :3] = active[0, 8] = True
    found = Sparsity.measure(active)
    assert (found.mean_active, found.min_active, found.max_active) == (7 / 9, 0, 4)
    assert found.to_dict()["cls_8"] == 0.25 and found.to_dict()["cls_32"] is None


def test_windows_longer_than_a_piece_are_not_measured():
    active = np.random.default_rng(0).random((2, 64, 5)) < 0.2
    assert Sparsity.measure(active, 64) == Sparsity.measure(active)
    found = Sparsity.measure(active, 16).cls
    assert found[32] is None and found[8] == Sparsity.measure(active).cls[8]
