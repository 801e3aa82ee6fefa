"""Prompt lookup: what followed the last tokens when they occurred before is likely to follow them again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice

import numpy as np

from ..tree import Tree, TreeShape, build_tree

_LONGEST = 4  # tokens of the longest suffix that is looked up
_MATCHES = 4  # earlier occurrences that a tree is made of
# The weight of an occurrence grows by this factor with every token that it shares with the text; an unseen token has
# the weight 1. So after a match of n tokens the text goes on in the same way with odds of 2^n to 1.
_TRUST = 2.0


class NgramDrafter:
    """Looks up the longest suffixes of the text (4 tokens down to 1) that occurred before and proposes what came next,
    several occurrences as one tree: longer ones weigh more, later ones come first. No model, no state but the text
    and an index from n-grams to places."""

    name = "ngram"

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._places: dict[tuple[int, ...], list[int]] = {}  # n-gram -> positions behind it, ascending

    def extend(self, tokens: Sequence[int], hidden: np.ndarray | None) -> None:
        for token in tokens:
            self._tokens.append(token)
            end = len(self._tokens)
            for ngram in self._suffixes():
                self._places.setdefault(ngram, []).append(end)

    def rollback(self, length: int) -> None:
        while len(self._tokens) > length:
            for ngram in self._suffixes():
                places = self._places[ngram]
                places.pop()
                if not places:
                    del self._places[ngram]
            self._tokens.pop()

    def draft(self, root: int, shape: TreeShape) -> Tree:
        self._tokens.append(root)  # the text to continue; not indexed: it is the suffix itself
        try:
            matches = self._matches()
            depth = min(shape.depth, shape.size - 1)
            continuations = [(self._continuation(place, depth), length) for place, length in matches]
        finally:
            self._tokens.pop()
        return _merge(root, continuations, shape)

    def _suffixes(self) -> list[tuple[int, ...]]:
        """The text's last 1, 2, ... tokens."""
        last = tuple(self._tokens[-_LONGEST:])
        return [last[-n:] for n in range(1, len(last) + 1)]

    def _matches(self) -> list[tuple[int, int]]:
        """Places where a suffix of the text occurred before and its length: longest first, then latest."""
        found: dict[int, int] = {}
        for ngram in reversed(self._suffixes()):
            for place in islice(reversed(self._places.get(ngram, ())), _MATCHES):
                found.setdefault(place, len(ngram))
                if len(found) == _MATCHES:
                    return list(found.items())
        return list(found.items())

    def _continuation(self, place: int, depth: int) -> list[int]:
        """The next ``depth`` tokens from ``place`` on; at the end of the text it repeats itself from there."""
        tokens = self._tokens[place:place + depth]
        return (tokens * -(-depth // len(tokens)))[:depth]


def _merge(root: int, continuations: list[tuple[list[int], int]], shape: TreeShape) -> Tree:
    """One tree of weighted continuations. A node's score estimates its log-probability: at each level the share of its
    weight among all that its parent's children and an unseen token have."""
    candidate: dict[tuple[int, int], int] = {}  # (parent, token) -> index
    tokens, parents, weights = [], [], []
    totals = [1.0]  # by index + 1, the root first: the weights of a node's children and of an unseen token
    for continuation, length in continuations:
        parent, weight = -1, _TRUST**length
        for token in continuation:
            index = candidate.setdefault((parent, token), len(tokens))
            if index == len(tokens):
                tokens.append(token)
                parents.append(parent)
                weights.append(0.0)
                totals.append(1.0)
            weights[index] += weight
            totals[parent + 1] += weight
            parent, weight = index, weight * _TRUST  # a level further the match is longer, if it holds
    scores: list[float] = []
    for parent, weight in zip(parents, weights):
        scores.append(math.log(weight / totals[parent + 1]) + (scores[parent] if parent >= 0 else 0.0))
    return build_tree(root, tokens, parents, scores, shape.size)
