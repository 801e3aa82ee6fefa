"""Drafters without a model: lookup in the text, and the replay of a script."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockffn_mlc.errors import UserError
from runtime_py import Engine
from runtime_py.drafters import make_drafter
from runtime_py.drafters.ngram import NgramDrafter
from runtime_py.drafters.scripted import ScriptedDrafter
from runtime_py.tree import Tree, TreeShape


def replay(drafter, text, start, shape):
    """New tokens of every pass while a target writes ``text`` from position ``start`` on."""
    drafter.extend(text[:start], None)
    lengths = []
    while start < len(text) - 1:
        tree, node, length = drafter.draft(text[start], shape), 0, 0
        assert len(tree) <= shape.size and tree.tokens[0] == text[start]
        while start + length + 1 < len(text) and (child := tree.child(node, text[start + length + 1])) is not None:
            node, length = child, length + 1
        drafter.extend(text[start:start + length + 1], None)
        lengths.append(length + 1)
        start += length + 1
    return lengths


def drafted(text, shape):
    drafter = NgramDrafter()
    drafter.extend(text[:-1], None)
    return drafter.draft(text[-1], shape)


def test_the_longest_suffix_tells_what_comes_next():
    text = [1, 2, 3, 7, 8, 9, 2, 3, 5, 6, 1, 2, 3]
    assert drafted(text, TreeShape(4, 3, 10)) == Tree([3, 7, 8, 9], [-1, 0, 1, 2])
    assert drafted(text, TreeShape(4, 1, 10)) == Tree([3, 7, 5], [-1, 0, 0])


def test_of_equal_matches_the_latest_comes_first():
    assert drafted([4, 1, 5, 4, 2, 6, 4], TreeShape(3, 1, 10)) == Tree([4, 2, 1], [-1, 0, 0])


def test_matches_that_agree_outweigh_a_later_one():
    assert drafted([4, 1, 5, 4, 1, 6, 4, 2, 7, 4], TreeShape(2, 1, 10)) == Tree([4, 1], [-1, 0])


def test_a_match_that_reaches_the_end_goes_on_in_circles():
    assert drafted([1, 2, 3, 1, 2, 3, 1], TreeShape(9, 8, 10)).tokens == [1, 2, 3, 1, 2, 3, 1, 2, 3]


def test_without_a_match_nothing_is_proposed():
    assert drafted([1, 2, 3, 4], TreeShape(8, 7, 10)) == Tree([4], [-1])
    assert drafted([1], TreeShape(8, 7, 10)) == Tree([1], [-1])


def test_repetitive_text_brings_more_than_two_tokens_per_pass():
    rng = np.random.default_rng(0)
    phrases = [rng.integers(0, 500, 8).tolist() for _ in range(5)]
    text = [token for choice in rng.integers(0, 5, 60) for token in phrases[choice]]
    for size in (4, 8, 32):
        assert np.mean(replay(NgramDrafter(), text, 100, TreeShape(size, size - 1, 10))) > 2


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 2), min_size=1, max_size=6)), max_size=30),
       st.integers(2, 16), st.integers(1, 8))
def test_after_any_changes_it_is_as_good_as_new(changes, size, depth):
    """Drafts, extensions and rollbacks in any order leave no trace but the text."""
    drafter, text = NgramDrafter(), []
    shape = TreeShape(size, depth, 10)
    for kind, tokens in changes:
        if kind == 0:
            del text[len(text) // 2:]
            drafter.rollback(len(text))
        else:
            text += tokens
            drafter.extend(tokens, None)
        if kind == 1:
            tree = drafter.draft(1, shape)
            assert tree == drafted([*text, 1], shape) and len(tree) <= size
    drafter.rollback(0)
    assert drafter.draft(1, shape) == Tree([1], [-1]) and not drafter._places


def test_a_draft_that_was_broken_off_is_put_right_by_the_next_rollback(monkeypatch):
    text, shape = [1, 2, 3, 1, 2, 4, 1, 2, 3, 1], TreeShape(8, 7, 10)
    drafter = NgramDrafter()
    drafter.extend(text, None)
    calls = iter(range(100))
    plain = NgramDrafter._suffixes

    def interrupted(self, end):
        suffixes = plain(self, end)
        if next(calls) == 6:
            raise KeyboardInterrupt
        return suffixes
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(NgramDrafter, "_suffixes", interrupted)
        drafter.draft(2, shape)
    drafter.rollback(8)
    assert drafter.draft(3, shape) == drafted([*text[:8], 3], shape)


@pytest.mark.parametrize("accuracy", [0.0, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("shape", [TreeShape(2, 1, 10), TreeShape(8, 3, 10), TreeShape(8, 7, 10), TreeShape(4, 10, 10)])
def test_a_scripted_drafter_is_right_as_often_as_it_says(accuracy, shape):
    script = np.random.default_rng(1).integers(0, 300, 12_000).tolist()
    lengths = replay(ScriptedDrafter(script, accuracy, 300, seed=2), script, 50, shape)[:-10]  # it ends with the script
    expected = ScriptedDrafter(script, accuracy, 300).expected_accept_length(shape)
    # Four standard errors of the mean; lengths lie between 1 and depth + 1.
    assert abs(np.mean(lengths) - expected) <= 4 * np.std(lengths) / np.sqrt(len(lengths))
    assert expected == pytest.approx({0.0: 1, 1.0: 1 + min(shape.depth, shape.size - 1)}.get(accuracy, expected))


def test_a_scripted_tree_is_full_and_repeatable():
    script = list(range(100))
    trees = []
    for _ in range(2):
        drafter = ScriptedDrafter(script, 0.5, 100, seed=3)
        drafter.extend(script[:10], None)
        trees.append([drafter.draft(10, TreeShape(16, 4, 10)) for _ in range(20)])
    assert trees[0] == trees[1] and all(len(tree) == 16 for tree in trees[0])
    for tree in trees[0]:
        children = list(zip(tree.parents, tree.tokens))
        assert len(set(children)) == 16 and {0 <= token < 100 for token in tree.tokens} == {True}
    assert len({tuple(tree.tokens) for tree in trees[0]}) > 3


def test_a_script_ends():
    drafter = ScriptedDrafter([1, 2, 3], 1.0, 10)
    drafter.extend([1], None)
    assert drafter.draft(2, TreeShape(3, 2, 10)).tokens[:2] == [2, 3]
    drafter.extend([2], None)
    assert drafter.draft(3, TreeShape(3, 2, 10)) == Tree([3], [-1])
    drafter.rollback(1)
    assert drafter.draft(2, TreeShape(2, 1, 10)) == Tree([2, 3], [-1, 0])
    with pytest.raises(ValueError, match="probability"):
        ScriptedDrafter([1], 1.5, 10)


def test_drafters_by_name(engine):
    make = lambda draft: make_drafter(draft, engine.artifact, engine.library)  # noqa: E731
    assert make("none") is None and make("ngram").name == make("auto").name == "ngram"
    own = ScriptedDrafter([1], 1.0, 10)
    assert make(own) is own
    with pytest.raises(UserError, match="has no draft model, which draft 'eagle' needs"):
        make("eagle")
    with pytest.raises(UserError, match="expected one of none, ngram, eagle, auto, found 'medusa'"):
        make("medusa")


def test_the_documented_drafter_works(engine, monkeypatch, capsys):
    """docs/drafters.md, on the toy model, and with a reference that the text does follow."""
    page = (Path(__file__).parents[2] / "docs" / "drafters.md").read_text()
    monkeypatch.setattr(Engine, "load", lambda path: engine)
    names = {}
    exec(page.split("```python\n")[1].split("```")[0], names)
    prompt = "And the LORD said unto Moses,"
    plain = engine.generate(prompt, 32, draft="none")
    text = "".join(token.text for token in plain)
    assert capsys.readouterr().out.startswith(f"{text}\n1.") and names["generation"].ids == plain.ids
    drafter = names["Quoting"]([*engine.encode(prompt), *plain.ids])
    again = engine.generate(prompt, 32, draft=drafter, tree_size=4)
    assert [token.id for token in again] == plain.ids and again.stats.accepted > 10


def test_a_longer_match_is_trusted_more_with_every_level():
    """One place follows two tokens of the text's end, one follows one: had the first no growing weight, the other
    would be likelier than its fifth level."""
    text = [1, 2, 10, 11, 12, 13, 14, 9, 2, 20, 21, 1, 2]
    assert drafted(text, TreeShape(6, 5, 10)) == Tree([2, 10, 11, 12, 13, 14], [-1, 0, 1, 2, 3, 4])
