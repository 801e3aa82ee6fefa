"""What figures keep while they are collected."""

import weakref

import numpy as np
import pytest

from runtime_py.stats import Stats


class Scores(list):
    """Router scores of every layer; unlike a plain list it can be watched."""


@pytest.mark.parametrize(("bound", "limit"), [("_NODES_HELD", 64), ("_TENSORS_HELD", 16)])
def test_router_scores_do_not_pile_up(monkeypatch, bound, limit):
    """They are a device's memory, an allocation for every layer of every pass, until they are looked at."""
    monkeypatch.setattr(f"runtime_py.stats.{bound}", limit)
    stats, kept, expected, rng = Stats(), [], [], np.random.default_rng(0)
    for _ in range(100):
        nodes = int(rng.integers(2, 9))
        scores = Scores((rng.random((2, nodes, 12)) < 0.1).astype(np.float32))
        expected.append(np.stack(scores).any(axis=1).mean())
        kept.append((weakref.ref(scores), nodes, {"_NODES_HELD": nodes, "_TENSORS_HELD": len(scores)}[bound]))
        stats.add_scores(nodes - 1, scores)
        del scores
        assert sum(size for scores, _, size in kept if scores() is not None) < limit
    assert stats.union_shares == pytest.approx(expected) and not any(scores() for scores, *_ in kept)
    assert stats.verified == sum(nodes - 1 for _, nodes, _ in kept)
