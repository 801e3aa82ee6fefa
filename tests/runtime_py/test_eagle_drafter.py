"""Trees that grow from the compiled EAGLE draft, and the cache that they grow from."""

import weakref
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from compiled import same_bits
from eagle_models import CHUNK, WINDOW, causal, gqa_engine, mla_engine

from runtime_py.devices.device import Cpu
from runtime_py.drafters import eagle
from runtime_py.drafters.eagle import EagleDrafter
from runtime_py.drafters.ngram import NgramDrafter
from runtime_py.library import Library
from runtime_py.session import Session
from runtime_py.tree import Tree, TreeShape


@pytest.fixture
def engine():
    return gqa_engine()


def fresh_cache(engine, pairs, states):
    """A new cache with a row for every pair, and what follows the last."""
    caches = engine.library.new_draft_caches()
    for start in range(0, len(pairs), CHUNK):
        drafted = causal(engine.library, pairs[start:start + CHUNK], states[start:start + CHUNK], caches, start)
    return caches, drafted


def brute_force(engine, tokens, states, root, shape):
    """EAGLE-2 without a shortcut: each level's ``top_k`` best nodes are expanded, each node's path is computed as a
    plain sequence, and the best of all that were tried are sorted out at the end."""
    caches, drafted = fresh_cache(engine, [*tokens[1:], root], states)

    def children(score, path, given):  # ``given``: the states that go with the path's tokens
        return [(score + np.float64(log_prob), [*path, int(token)], [*given, drafted.hidden[-1]])
                for token, log_prob in zip(drafted.tokens[-1][:shape.top_k], drafted.log_probs[-1])]

    level = tried = children(0.0, [], [])
    for _ in range(1, shape.depth):
        best, level = sorted(level, key=lambda node: -node[0])[:shape.top_k], []
        for score, path, given in best:
            drafted = causal(engine.library, path, np.stack(given), caches, len(tokens))
            level = level + children(score, path, given)
        tried = tried + level
    kept = [path for _, path, _ in sorted(tried, key=lambda node: -node[0])][:shape.size - 1]
    place = {(): 0} | {tuple(path): node for node, path in enumerate(kept, 1)}
    return Tree([root, *(path[-1] for path in kept)], [-1, *(place[tuple(path[:-1])] for path in kept)])


def random_session(engine, rng, length):
    tokens = rng.integers(0, engine.artifact.config.vocab_size, length).tolist()
    return tokens, rng.standard_normal((length, engine.artifact.config.hidden_size), np.float32)


@pytest.mark.parametrize("shape", [(1, 3, 10), (2, 3, 10), (8, 5, 4), (32, 3, 10), (64, 7, 10), (64, 2, 1), (20, 20, 2),
                                   (30, 6, 3), (40, 8, 2), (64, 16, 4), (64, 0, 4), (64, 7, 30)], ids=str)
@pytest.mark.parametrize("model", [gqa_engine, partial(mla_engine, "q4f16_1")], ids=["gqa", "mla"])
def test_trees_equal_brute_force(model, shape):
    engine, rng, shape = model(), np.random.default_rng(3), TreeShape(*shape)
    tokens, states = random_session(engine, rng, 30)
    drafter = EagleDrafter(engine.artifact, engine.library)
    drafter.extend(tokens, states)
    tree = drafter.draft(5, shape)
    if shape.size == 1 or shape.depth == 0:
        assert tree == Tree([5], [-1])
    else:
        known = replace(shape, top_k=min(shape.top_k, engine.artifact.draft.top_k))
        assert tree == brute_force(engine, tokens, states, 5, known)


def test_the_cache_stays_that_of_a_fresh_drafter(engine):
    """1,000 steps: trees drafted, paths accepted or not, tokens decoded without a draft, roots that were not what
    followed, rollbacks. Then and when, every row has the bits of one computed from the session alone."""
    rng, library = np.random.default_rng(4), engine.library
    vocabulary, width = engine.artifact.config.vocab_size, engine.artifact.config.hidden_size
    drafter = EagleDrafter(engine.artifact, library)
    tokens, states = [], np.empty((0, width), np.float32)
    drafts = 0
    for step in range(1000):
        if len(tokens) > WINDOW - 20 or rng.random() < 0.05:
            length = int(rng.integers(0, len(tokens) + 1))
            drafter.rollback(length)
            tokens, states = tokens[:length], states[:length]
        root = int(rng.integers(0, 4))  # few tokens: the last root returns at places where its row is not the cache's
        tree = None
        if rng.random() < 0.8:
            shape = TreeShape(int(rng.integers(1, 20)), int(rng.integers(0, 5)), int(rng.integers(1, 11)))
            tree = drafter.draft(root, shape)
            drafts += len(tree) > 1
        if step % 10 == 9 and tree is not None and len(tree) > 1:
            fresh, _ = fresh_cache(engine, [*tokens[1:], root], states)
            for found, expected in zip(drafter._caches, fresh):
                rows = slice(0, len(tokens))
                assert same_bits(np.from_dlpack(found)[rows], np.from_dlpack(expected)[rows]), step
            other = EagleDrafter(engine.artifact, library)
            other.extend(tokens, states)
            assert other.draft(root, shape) == tree
        accepted = [int(rng.integers(0, vocabulary)) if rng.random() < 0.1 else root]
        accepted += rng.integers(0, vocabulary, int(rng.integers(0, 6))).tolist()
        hidden = rng.standard_normal((len(accepted), width), np.float32)
        drafter.extend(accepted, hidden)
        tokens, states = tokens + accepted, np.concatenate([states, hidden])
    assert drafts > 500


def test_a_row_of_forgotten_tokens_is_not_taken_for_another(engine):
    rng = np.random.default_rng(6)
    tokens, states = random_session(engine, rng, 14)
    drafter, other = (EagleDrafter(engine.artifact, engine.library) for _ in range(2))
    shape = TreeShape(20, 4, 4)
    drafter.extend(tokens[:12], states[:12])
    drafter.draft(8, shape)
    drafter.rollback(11)
    drafter.extend([8, *tokens[12:]], states[11:])  # behind 11 tokens stands the root that was drafted behind 12
    other.extend([*tokens[:11], 8, *tokens[12:]], states)
    assert drafter.draft(9, shape) == other.draft(9, shape)
    assert all(same_bits(np.from_dlpack(one)[:14], np.from_dlpack(two)[:14])
               for one, two in zip(drafter._caches, other._caches))


def test_trees_stay_inside_the_window(engine):
    rng = np.random.default_rng(5)
    for length, depth in ((WINDOW - 4, 3), (WINDOW - 3, 2), (WINDOW - 2, 1), (WINDOW - 1, 0)):
        tokens, states = random_session(engine, rng, length)
        drafter = EagleDrafter(engine.artifact, engine.library)
        drafter.extend(tokens, states)
        tree = drafter.draft(5, TreeShape(30, 8, 2))
        assert max(tree.levels) == depth


def test_a_session_without_tokens_has_no_states_to_go_on_from(engine):
    drafter = EagleDrafter(engine.artifact, engine.library)
    assert drafter.draft(5, TreeShape(8, 3, 4)) == Tree([5], [-1])
    with pytest.raises(ValueError, match="hidden states"):
        drafter.extend([5], None)


def test_a_drafter_needs_a_draft_model(engine):
    with pytest.raises(ValueError, match="no draft model"):
        EagleDrafter(replace(engine.artifact, draft=None), engine.library)


class Counted(Cpu):
    """``fetched``: how often something was looked at on the host, as on another device takes a copy."""

    fetched = 0

    def host(self, tensor):
        self.fetched += 1
        return super().host(tensor)


def decode(session):
    """Prompt, plain passes, a tree, a rollback: whatever is not drafting."""
    session.extend(range(2 * CHUNK + 3))
    for token in range(10):
        session.step(token)
    session.tree([7, 8, 9, 10], [-1, 0, 0, 2])
    session.commit([0, 2, 3])
    session.rollback(session.length - 1)
    session.step(3)


def test_states_are_fetched_from_the_device_for_drafts_only(engine):
    device, shape = Counted(), TreeShape(20, 4, 4)
    library = Library(engine.artifact, device)
    for drafter in (None, NgramDrafter()):
        decode(Session(engine.artifact, library, drafter))
    session = Session(engine.artifact, library, EagleDrafter(engine.artifact, library))
    decode(session)
    assert device.fetched == 0
    tree = session.drafter.draft(5, shape)
    assert device.fetched > 0
    fresh = engine.session("eagle")
    fresh.extend(session.tokens)
    assert fresh.drafter.draft(5, shape) == tree


class Waiting:
    """States that are not looked at yet; ``alive``: those that somebody keeps."""

    alive = weakref.WeakSet()

    def __init__(self, values):
        self._values = values
        self.alive.add(self)

    def __len__(self):
        return len(self._values)

    def __array__(self, dtype=None, copy=None):
        return self._values


def test_states_do_not_pile_up_on_the_device(engine, monkeypatch):
    monkeypatch.setattr(eagle, "_HELD", 8)
    tokens, states = random_session(engine, np.random.default_rng(7), 40)
    drafter = EagleDrafter(engine.artifact, engine.library)
    for position in range(40):
        drafter.extend(tokens[position:position + 1], Waiting(states[position:position + 1]))
        assert len(Waiting.alive) < 8
    for _ in range(20):
        drafter.rollback(30)
        drafter.extend(tokens[30:], Waiting(states[30:]))
        assert len(Waiting.alive) <= 2
    other = EagleDrafter(engine.artifact, engine.library)
    other.extend(tokens, states)
    assert drafter.draft(5, TreeShape(20, 4, 4)) == other.draft(5, TreeShape(20, 4, 4))


@pytest.mark.parametrize("good", [0, 1, 2])
def test_damaged_weights_end_a_tree(engine, monkeypatch, good):
    """Log-probabilities that are no numbers are no candidates; levels before them are."""
    tokens, states = random_session(engine, np.random.default_rng(8), 12)
    drafters = [EagleDrafter(engine.artifact, engine.library) for _ in range(2)]
    for drafter in drafters:
        drafter.extend(tokens, states)
    expected = drafters[0].draft(5, TreeShape(64, good, 2))
    draft, passes = engine.library.draft, []

    def damaged(*arguments):
        drafted = draft(*arguments)
        passes.append(1)
        return drafted if len(passes) <= good else drafted._replace(log_probs=drafted.log_probs * np.float32(np.nan))
    monkeypatch.setattr(engine.library, "draft", damaged)
    assert drafters[1].draft(5, TreeShape(64, 4, 2)) == expected and max(expected.levels) == good
    assert len(passes) == good + 1
