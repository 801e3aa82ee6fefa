"""One step of decoding: draft a token tree, verify it in one pass of the target, keep what it accepts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from time import perf_counter
from typing import Protocol

from .drafters import Drafter
from .session import Session
from .stats import Stats
from .tree import Tree, TreeShape
from .verification import Sample, accept

PLAIN = TreeShape(size=1, depth=0, top_k=1)


class ShapeController(Protocol):
    """Decides from pass to pass how large a tree to draft, and how much of it to verify."""

    def choose(self) -> TreeShape:
        """The shape to draft for the next pass; size 1: none, plain decoding."""

    def cut(self, tree: Tree) -> Tree:
        """What of the drafted tree to verify: its first nodes."""

    def observe(self, tree: Tree, path: list[int]) -> None:
        """What came of it: the tree that was drafted and the nodes below the root that were accepted."""


class FixedShape:
    """A controller that always chooses the same shape."""

    def __init__(self, shape: TreeShape) -> None:
        self.shape = shape

    def choose(self) -> TreeShape:
        return self.shape

    def cut(self, tree: Tree) -> Tree:
        return tree

    def observe(self, tree: Tree, path: list[int]) -> None:
        pass


def fixed_shape(size: int, drafter: Drafter) -> TreeShape:
    """A sensible shape of ``size`` nodes. A level costs a draft model a pass, and a lookup next to nothing."""
    return TreeShape(size, min(size - 1, size.bit_length()) if drafter.name == "eagle" else size - 1, top_k=10)


def _drafted(drafter: Drafter, root: int, shape: TreeShape) -> Tree:
    """What ``drafter`` proposes. Raises ValueError for a tree that ``shape`` does not allow."""
    tree = drafter.draft(root, shape)
    if (tree.tokens[0] != root or len(tree) > shape.size
            or (len(tree) - 1 > shape.depth and max(tree.levels) > shape.depth)):
        raise ValueError(f"drafter {drafter.name}: expected at most {shape.size} nodes and {shape.depth} levels below "
                         f"the root {root}, found {len(tree)} nodes and {max(tree.levels)} levels below the root "
                         f"{tree.tokens[0]}")
    return tree


def advance(session: Session, root: int, limit: int, sample: Sample, stop_ids: Collection[int],
            controller: ShapeController, stats: Stats) -> list[int]:
    """The tokens that one pass adds behind ``root``, the token chosen last: at least one, at most ``limit``, drawn as
    plain decoding draws them (``verification.accept``), the last one possibly of ``stop_ids``.

    The session, which has room for ``limit`` tokens and the root, then holds everything but the last of them. Where
    the drafter has nothing to propose, or one token is wanted, the pass is a plain step. Raises ValueError when the
    drafter proposes a tree that it was not asked for.
    """
    start = perf_counter()
    shape = controller.choose()
    if shape.depth >= limit:  # a path of d nodes below the root gives d + 1 tokens
        shape = replace(shape, depth=limit - 1)
    drafted = _drafted(session.drafter, root, shape) if shape.size > 1 and shape.depth else Tree([root], [-1])
    tree = controller.cut(drafted)
    stats.draft_seconds += perf_counter() - start
    start = perf_counter()
    if len(tree) == 1:
        logits = session.step(root)
        session.wait()
        stats.verify_seconds += perf_counter() - start
        path, tokens = [0], [sample(logits, session.tokens)]
    else:
        output = session.tree(tree.tokens, tree.parents)
        session.wait()
        stats.verify_seconds += perf_counter() - start
        path, tokens = accept(tree, output.logits, sample, session.tokens, stop_ids)
        start = perf_counter()
        session.commit(path)
        session.wait()
        stats.verify_seconds += perf_counter() - start
        stats.add_scores(output.layer_scores)
    stats.drafted += len(tree) - 1
    stats.accept_lengths.append(len(path))
    controller.observe(drafted, path[1:])
    return tokens
