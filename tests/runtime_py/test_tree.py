"""Trees of scored candidates against a brute-force twin."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime_py.tree import Tree, TreeShape, build_tree

ROOT = 99


@st.composite
def candidates(draw, most=40):
    """tokens, parents, scores; scores on a coarse grid, so that many are equal, and some above their parent's."""
    count = draw(st.integers(0, most))
    parents = [draw(st.integers(-1, index - 1)) for index in range(count)]
    scores = draw(st.lists(st.integers(-12, 0).map(lambda i: i / 4), min_size=count, max_size=count))
    return list(range(count)), parents, scores


def capped(parents, scores):
    """Each candidate's score, at most its parent's."""
    found = []
    for parent, score in zip(parents, scores):
        found.append(min(score, found[parent]) if parent >= 0 else score)
    return found


def best_first(parents, scores, size):
    """Candidates in the order in which a search takes them that only ever sees children of what it has taken."""
    scores, taken = capped(parents, scores), []
    while len(taken) < min(size - 1, len(parents)):
        reachable = [i for i, parent in enumerate(parents) if i not in taken and (parent < 0 or parent in taken)]
        taken.append(max(reachable, key=lambda i: (scores[i], -i)))
    return taken


@settings(deadline=None, max_examples=300)
@given(candidates(), st.integers(1, 64))
def test_a_tree_equals_a_best_first_search(scored, size):
    tokens, parents, scores = scored
    tree = build_tree(ROOT, tokens, parents, scores, size)
    taken = best_first(parents, scores, size)
    assert tree.tokens == [ROOT, *taken]
    assert [ROOT if parent == 0 else tree.tokens[parent] for parent in tree.parents[1:]] \
        == [parents[i] if parents[i] >= 0 else ROOT for i in taken]
    assert all(tree.first(part) == build_tree(ROOT, tokens, parents, scores, part) for part in range(1, size + 1))


@settings(deadline=None, max_examples=100)
@given(candidates(most=9), st.integers(1, 10))
def test_no_other_tree_of_that_size_scores_more(scored, size):
    tokens, parents, scores = scored
    scores = np.array(capped(parents, scores))
    count = min(size - 1, len(parents))
    trees = [nodes for nodes in itertools.combinations(range(len(parents)), count)
             if all(parents[i] < 0 or parents[i] in nodes for i in nodes)]
    found = build_tree(ROOT, tokens, parents, scores.tolist(), size).tokens[1:]
    assert len(found) == count and max(scores[list(nodes)].sum() for nodes in trees) == scores[found].sum()


def test_a_child_is_found_by_its_token():
    tree = Tree([7, 1, 2, 1, 5], [-1, 0, 0, 2, 2])
    assert (tree.child(0, 1), tree.child(0, 2), tree.child(2, 1), tree.child(2, 5)) == (1, 2, 3, 4)
    assert tree.child(0, 5) is None and tree.child(4, 1) is None and tree.child(1, 7) is None


@pytest.mark.parametrize(("tokens", "parents"), [([], []), ([1], [0]), ([1, 2], [-1, -1]), ([1, 2], [-1, 1]),
                                                 ([1, 2], [-1])])
def test_what_is_no_tree_is_refused(tokens, parents):
    with pytest.raises(ValueError, match="parent"):
        Tree(tokens, parents)


@pytest.mark.parametrize("shape", [(0, 0, 1), (65, 3, 10), (8, -1, 10), (8, 3, 0)])
def test_impossible_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="1 to 64 nodes"):
        TreeShape(*shape)
