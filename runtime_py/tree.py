"""Token trees: drafted continuations that one pass of the model verifies together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from .artifact import MASK_BITS


@dataclass(frozen=True)
class TreeShape:
    """How large a tree to draft: ``size`` nodes at most, the root included (1: plain decoding), ``depth`` levels
    below the root, each from the ``top_k`` best nodes of the one above and their ``top_k`` most likely tokens."""

    size: int
    depth: int
    top_k: int

    def __post_init__(self) -> None:
        if not (1 <= self.size <= MASK_BITS and self.depth >= 0 and self.top_k >= 1):
            raise ValueError(f"expected a tree of 1 to {MASK_BITS} nodes, depth >= 0 and top_k >= 1, found {self}")

    def at_most(self, depth: int) -> TreeShape:
        """This shape with no more than ``depth`` levels."""
        return self if self.depth <= depth else replace(self, depth=depth)


@dataclass(frozen=True)
class Tree:
    """Nodes in falling order of score. Node 0 is the root: the token chosen last, which the model has not seen yet;
    its parent is -1, every other node's is an earlier node, so that any first nodes are a tree as well."""

    tokens: list[int]
    parents: list[int]

    def __post_init__(self) -> None:
        if (not self.tokens or len(self.tokens) != len(self.parents) or self.parents[0] != -1
                or any(not 0 <= parent < node for node, parent in enumerate(self.parents[1:], 1))):
            raise ValueError("expected a root with parent -1 and behind it nodes with an earlier parent, found "
                             f"{len(self.tokens)} tokens with parents {self.parents}")

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def levels(self) -> list[int]:
        """Of every node the number of levels it lies below the root."""
        levels = [0]
        for parent in self.parents[1:]:
            levels.append(levels[parent] + 1)
        return levels

    def child(self, node: int, token: int) -> int | None:
        """The first child of ``node`` that carries ``token``."""
        for other in range(node + 1, len(self.tokens)):
            if self.tokens[other] == token and self.parents[other] == node:
                return other
        return None

    def first(self, size: int) -> Tree:
        """The tree of the ``size`` best nodes (all, if there are fewer)."""
        return self if size >= len(self) else Tree(self.tokens[:size], self.parents[:size])


def build_tree(root: int, tokens: Sequence[int], parents: Sequence[int], scores: Sequence[float], size: int) -> Tree:
    """The root and the ``size - 1`` best candidates (EAGLE-2, arXiv 2406.16858, section 4.2: reranking).

    Candidate i is the token ``tokens[i]`` behind candidate ``parents[i]`` < i (-1: behind the root) with the
    cumulative log-probability ``scores[i]``. A child counts at most as much as its parent, and with equal scores the
    earlier candidate comes first, hence the parent.
    """
    capped: list[float] = []
    for parent, score in zip(parents, scores, strict=True):
        capped.append(min(score, capped[parent]) if parent >= 0 else score)
    kept = sorted(range(len(capped)), key=lambda i: -capped[i])[:size - 1]
    place = {-1: 0} | {candidate: node for node, candidate in enumerate(kept, 1)}
    return Tree([root, *(tokens[i] for i in kept)], [-1, *(place[parents[i]] for i in kept)])
