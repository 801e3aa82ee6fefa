"""How cost tables are measured, in simulated time."""

from dataclasses import replace

import numpy as np
import pytest

from runtime_py import cost_measurement
from runtime_py.controller import Controller
from runtime_py.cost_measurement import cost_table, measure_costs
from runtime_py.cost_table import NODES
from runtime_py.devices import device
from runtime_py.drafters.ngram import NgramDrafter
from runtime_py.session import Session
from runtime_py.tree import Tree, TreeShape


class Clock:
    """Simulated time, instead of the stopwatch: passes and drafts say what they cost. As on a device, a pass takes its
    time when it is waited for."""

    def __init__(self, monkeypatch, library, seconds):
        self.now, self.launched, self.passes = 0.0, 0.0, 0
        forward = library.forward

        def timed(ids, *arguments, **options):
            self.passes += 1
            self.launched += seconds(self.passes, len(ids))
            return forward(ids, *arguments, **options)

        def wait():
            self.now, self.launched = self.now + self.launched, 0.0

        clock = self

        class Stopwatch:
            def __init__(self):
                self.start = clock.now

            @property
            def seconds(self):
                return clock.now - self.start

        monkeypatch.setattr(library, "forward", timed)
        monkeypatch.setattr(library, "wait", wait)
        for module in (cost_measurement, device):
            monkeypatch.setattr(module, "Stopwatch", Stopwatch)


class ModelDrafter(NgramDrafter):
    """Draws as prompt lookup does, in ``level`` seconds for each level."""

    name, by_level, level, clock = "model", True, 0.5, None

    def draft(self, root, shape):
        self.clock.now += self.level * shape.depth
        return super().draft(root, shape)


def test_measured(monkeypatch, engine):
    """Medians: every seventh pass takes ten times as long, which does not show."""
    clock = Clock(monkeypatch, engine.library,
                  lambda turn, nodes: (10.0 if turn % 7 == 0 else 1.0) * 1e-5 * (9 + nodes))
    drafter = NgramDrafter()
    table, undisturbed = measure_costs(engine, drafter)
    limit = min(engine.artifact.max_tree_nodes, engine.artifact.prefill_chunk_size)
    assert table.nodes == tuple(n for n in NODES if n <= limit) and len(table.nodes) > 3
    assert np.allclose(table.seconds, [1e-5 * (9 + n) for n in table.nodes])
    assert table.draft_seconds == () and clock.passes > 40 and undisturbed and abs(table.try_seconds) < 1e-9
    assert drafter.draft(5, TreeShape(4, 3, 1)) == Tree([5], [-1])  # it knows nothing of the measurement


def test_a_lasting_disturbance_of_few_nodes_does_not_show(monkeypatch, engine):
    Clock(monkeypatch, engine.library, lambda turn, nodes: 5.0 if nodes == 2 else 0.1 * nodes)
    table, _ = measure_costs(engine, NgramDrafter())
    assert table.nodes[:3] == (1, 2, 4) and np.allclose(table.seconds[:3], [0.1, 0.4, 0.4])


def test_a_draft_model_is_timed_by_levels(monkeypatch, engine):
    drafter = ModelDrafter()
    drafter.clock = Clock(monkeypatch, engine.library, lambda turn, nodes: 1.0)
    assert measure_costs(engine, drafter)[0].draft_seconds == tuple(0.5 * depth for depth in range(1, 9))


def test_looking_up_is_part_of_a_pass(monkeypatch, engine):
    drafter = ModelDrafter()
    drafter.by_level = False
    drafter.clock = Clock(monkeypatch, engine.library, lambda turn, nodes: 0.1)
    table, _ = measure_costs(engine, drafter)
    assert table.draft_seconds == () and table.nodes[:3] == (1, 2, 4)
    assert np.allclose(table.seconds[:3], [0.1, 0.1 + 0.5 * 1, 0.1 + 0.5 * 3])
    assert np.isclose(table.try_seconds, 0.5 * 15)


def test_keeping_and_learning_are_part_of_a_pass(monkeypatch, engine):
    """Telling the drafter of tokens takes a second here, as does what the controller learns from a tree."""
    class Told(ModelDrafter):
        level = 0.1

        def extend(self, tokens, hidden):
            self.clock.now += 1.0

    class Learning(Controller):
        def observe(self, tree, text):
            drafter.clock.now += 1.0

    drafter = Told()
    drafter.clock = Clock(monkeypatch, engine.library, lambda turn, nodes: 0.5)
    monkeypatch.setattr(cost_measurement, "Controller", Learning)
    table, _ = measure_costs(engine, drafter)
    assert np.allclose(table.seconds, [1.5] + [2.5] * (len(table.nodes) - 1)) and np.isclose(table.try_seconds, 1.0)


def test_rounds_go_forwards_and_backwards(monkeypatch, engine):
    passes = []
    Clock(monkeypatch, engine.library, lambda turn, nodes: passes.append(nodes) or 0.5)
    table, _ = measure_costs(engine, NgramDrafter())
    work = [*table.nodes, 1]  # the last to ask in vain
    rounds = np.array(passes[-len(work) * 4:]).reshape(4, -1).tolist()
    assert rounds == [work[::-1], work] * 2


def test_lookup_has_something_to_find(monkeypatch, engine):
    found, draft = [], NgramDrafter.draft
    monkeypatch.setattr(NgramDrafter, "draft",
                        lambda self, root, shape: found.append(draft(self, root, shape)) or found[-1])
    monkeypatch.setattr(np, "argsort", lambda logits, kind: np.array(engine.tokens, np.int64), raising=True)
    engine.tokens = []
    session_extend = Session.extend

    def extend(session, ids):
        engine.tokens[:] = ids
        return session_extend(session, ids)
    monkeypatch.setattr(Session, "extend", extend)
    measure_costs(engine, NgramDrafter())
    assert np.mean([len(tree) > 1 for tree in found]) == 1


@pytest.mark.parametrize("window", range(2, 9))
def test_small_windows(engine, window):
    engine.artifact = replace(engine.artifact, context_window_size=window)
    table, _ = measure_costs(engine, NgramDrafter())
    assert table.nodes[0] == 1


def test_a_disturbed_measurement_is_not_kept(monkeypatch, engine, cache):
    Clock(monkeypatch, engine.library, lambda turn, nodes: 0.1 if turn % 5 else 0.01)
    lines = []
    cost_table(engine, NgramDrafter(), lines.append)
    assert not (cache / "costs").exists() and "is not kept" in lines[-1]
    Clock(monkeypatch, engine.library, lambda turn, nodes: 0.1)
    cost_table(engine, NgramDrafter(), lines.append)
    assert len(list((cache / "costs").iterdir())) == 1 and "measuring" in lines[-1]


def test_slow_models_take_few_passes(monkeypatch, engine):
    clock = Clock(monkeypatch, engine.library, lambda turn, nodes: 10.0)
    table, _ = measure_costs(engine, NgramDrafter())
    assert clock.passes <= 4 * (len(table.nodes) + 1) + 4  # the rounds, the warm-up, the prompt
