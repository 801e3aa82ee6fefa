"""What figures keep while they are collected."""

import weakref

import numpy as np
import pytest

from runtime_py.stats import Stats


class Scores(list):
    """Router scores of every layer; unlike a plain list it can be watched."""


def test_router_scores_do_not_pile_up(monkeypatch):
    """They are a device's memory, an allocation for every layer of every pass, until they are looked at."""
    monkeypatch.setattr("runtime_py.stats._TENSORS_HELD", 16)
    stats, kept, expected, rng = Stats(), [], [], np.random.default_rng(0)
    for _ in range(100):
        nodes = int(rng.integers(2, 9))
        scores = Scores((rng.random((2, nodes, 12)) < 0.1).astype(np.float32))
        expected.append(np.stack(scores).any(axis=1).mean())
        kept.append((weakref.ref(scores), nodes))
        stats.add_scores(nodes - 1, scores)
        del scores
        assert sum(scores() is not None for scores, _ in kept) < 16 // 2
    assert stats.union_shares == pytest.approx(expected) and not any(scores() for scores, _ in kept)
    assert stats.verified == sum(nodes - 1 for _, nodes in kept)
