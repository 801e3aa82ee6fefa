"""A session's cache equals one computed afresh, whatever happened to it before."""

import numpy as np
import pytest
from toy import CHUNK, WINDOW

from blockffn_mlc.errors import UserError

IDS = [1, 17, 4, 99, 250, 3, 8, 8, 120, 77]
PARENTS = [-1, 0, 0, 1, 1, 2, 3, 5, -1]


def ancestors_of(node):
    path = []
    while node >= 0:
        path.insert(0, node)
        node = PARENTS[node]
    return path


def assert_same_state(session, engine, probe=(42, 43)):
    """The session continues bit for bit like a new one fed with its tokens."""
    fresh = engine.session()
    if session.tokens:
        fresh.extend(session.tokens)
    np.testing.assert_array_equal(session.extend(probe), fresh.extend(probe))
    assert session.tokens == fresh.tokens


@pytest.mark.parametrize("chunk", [1, 3, 7, CHUNK])
def test_chunks_give_the_same_logits_and_scores(engine, chunk):
    ids = list(range(3, 40))
    whole = engine.score(ids, chunk=CHUNK)
    parts = engine.score(ids, chunk=chunk)
    np.testing.assert_array_equal(parts.logits, whole.logits)
    np.testing.assert_array_equal(parts.router_scores, whole.router_scores)
    assert whole.logits.shape == (37, 300) and whole.router_scores.shape == (2, 37, 12)


def test_a_step_extends_by_one_token(engine):
    one, other = engine.session(), engine.session()
    one.extend(IDS[:3])
    other.extend(IDS[:3])
    one.tree(IDS[:2], [-1, 0])
    for token in IDS[3:]:
        np.testing.assert_array_equal(one.step(token), other.extend([token]))
    assert_same_state(one, engine)


def test_a_step_drops_the_tree(engine):
    session = engine.session()
    session.extend(IDS)
    session.tree(IDS[:2], [-1, 0])
    session.step(5)
    with pytest.raises(ValueError, match="just tried"):
        session.commit([0])


def test_a_step_beyond_the_window_is_refused(engine):
    session = engine.session()
    session.extend([5] * WINDOW)
    with pytest.raises(UserError, match="1 tokens do not fit"):
        session.step(5)
    assert session.length == WINDOW


def test_prefill_is_chunked_and_asks_for_one_row(engine):
    engine.session().extend(range(3, 40))
    assert engine.library.calls == [(CHUNK, 1), (CHUNK, 1), (5, 1)]


def test_tree_nodes_see_the_prefix_their_ancestors_and_themselves(engine):
    session = engine.session()
    session.extend(IDS)
    nodes = [5, 6, 7, 8, 9, 10, 11, 12, 13]
    output = session.tree(nodes, PARENTS)
    assert session.tokens == IDS
    for node in range(len(nodes)):
        alone = engine.session()
        logits = alone.extend(IDS + [nodes[i] for i in ancestors_of(node)])
        np.testing.assert_array_equal(output.logits[node], logits)


@pytest.mark.parametrize("path", [[], [0], [0, 1, 3, 6], [0, 2, 5, 7], [8]])
def test_commit_equals_a_fresh_cache(engine, path):
    session = engine.session()
    session.extend(IDS)
    nodes = [5, 6, 7, 8, 9, 10, 11, 12, 13]
    session.tree(nodes, PARENTS)
    session.commit(path)
    assert session.tokens == IDS + [nodes[node] for node in path]
    assert_same_state(session, engine)


def test_a_tree_of_64_nodes_uses_every_mask_bit(engine):
    object.__setattr__(engine.artifact, "prefill_chunk_size", 64)
    session = engine.session()
    session.extend([1, 2, 3])
    chain = list(range(10, 74))
    output = session.tree(chain, range(-1, 63))
    fresh = engine.session()
    np.testing.assert_array_equal(output.logits[-1], fresh.extend([1, 2, 3, *chain]))


@pytest.mark.parametrize("length", [0, 1, 5, 10])
def test_rollback_equals_a_fresh_cache(engine, length):
    session = engine.session()
    session.extend(IDS)
    session.tree([5, 6], [-1, 0])
    session.rollback(length)
    assert session.tokens == IDS[:length]
    assert_same_state(session, engine)


def test_reuse_keeps_the_shared_prefix_and_leaves_one_token_to_feed(engine):
    session = engine.session()
    session.extend(IDS)
    assert session.reuse([*IDS[:6], 200, 201]) == 6 and session.tokens == IDS[:6]
    assert session.reuse(IDS[:6]) == 5 and session.tokens == IDS[:5]
    assert session.reuse([9]) == 0 and session.tokens == []


def test_overflow_is_refused_before_any_work(engine):
    session = engine.session()
    with pytest.raises(UserError, match=rf"{WINDOW + 1} tokens do not fit .* window of {WINDOW} tokens"):
        session.extend([3] * (WINDOW + 1))
    with pytest.raises(UserError, match="levels of the token tree"):
        session.extend([3] * (WINDOW - 1))
        session.tree([4, 5], [-1, 0])
    session.tree([4, 5], [-1, -1])  # two nodes on one level still fit
    assert session.room == 1 and all(n <= CHUNK for n, _ in engine.library.calls)


@pytest.mark.parametrize(("ids", "message"), [([], "at least one"), ([5, 300], "token 300 at position 1"),
                                              ([-1], "token -1 at position 0")])
def test_bad_tokens_are_refused_before_any_work(engine, ids, message):
    for use in (engine.session().extend, engine.score, engine.generate):
        with pytest.raises(UserError, match=message):
            list(use(ids))
    assert engine.library.calls == []


@pytest.mark.parametrize("parents", [[0], [-2], [-1, 1], [-1]])
def test_malformed_trees_are_refused(engine, parents):
    with pytest.raises(ValueError, match="parents" if len(parents) == 1 else "earlier node"):
        engine.session().tree([4] * (2 if parents == [-1] else len(parents)), parents)


@pytest.mark.parametrize("path", [[1], [0, 3], [0, 1, 2], [9], [-1]])
def test_commit_takes_only_paths_from_the_root(engine, path):
    session = engine.session()
    session.tree([5, 6, 7, 8], [-1, 0, 0, 1])
    with pytest.raises(ValueError, match="no path"):
        session.commit(path)


def test_commit_needs_a_tree(engine):
    session = engine.session()
    session.tree([5], [-1])
    session.extend([4])
    with pytest.raises(ValueError, match="needs a tree"):
        session.commit([0])


def test_trees_larger_than_a_chunk_are_refused(engine):
    with pytest.raises(UserError, match=f"{CHUNK + 1} nodes .* allows \\({CHUNK}\\)"):
        engine.session().tree([4] * (CHUNK + 1), [-1] * (CHUNK + 1))
