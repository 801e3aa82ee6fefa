"""Prompt lookup: what followed the last tokens when they occurred before is likely to follow them again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice

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

    name, by_level = "ngram", False

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._places: dict[tuple[int, ...], list[int]] = {}  # n-gram -> positions behind it, ascending
        self._indexed = 0  # tokens whose n-grams are in the index

    def extend(self, tokens: Sequence[int], hidden: object) -> None:
        self._tokens.extend(tokens)

    def rollback(self, length: int) -> None:
        for end in range(min(self._indexed + 1, len(self._tokens)), length, -1):  # + 1: one left half-done by Ctrl-C
            for ngram in self._suffixes(end):
                places = self._places.get(ngram, [])
                while places and places[-1] >= end:
                    places.pop()
                if not places:
                    self._places.pop(ngram, None)
        self._indexed = min(self._indexed, length)
        del self._tokens[length:]

    def draft(self, root: int, shape: TreeShape) -> Tree:
        for end in range(self._indexed + 1, len(self._tokens) + 1):
            for ngram in self._suffixes(end):
                self._places.setdefault(ngram, []).append(end)
            self._indexed = end
        depth = min(shape.depth, shape.size - 1)
        self._tokens.append(root)  # the text to continue; not in the index: it is the suffix itself
        try:
            continuations = [(self._continuation(place, depth), length) for place, length in self._matches()]
        finally:
            self._tokens.pop()
        return _merge(root, continuations, shape)

    def _suffixes(self, end: int) -> list[tuple[int, ...]]:
        """The last 1, 2, ... of the first ``end`` tokens."""
        last = tuple(self._tokens[max(end - _LONGEST, 0):end])
        return [last[-n:] for n in range(1, len(last) + 1)]

    def _matches(self) -> list[tuple[int, int]]:
        """Places where a suffix of the text occurred before and its length: longest first, then latest."""
        found: dict[int, int] = {}
        for ngram in reversed(self._suffixes(len(self._tokens))):
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
