"""One step of decoding: draft a token tree, verify it in one pass of the target, keep what it accepts."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from time import perf_counter
from typing import Protocol

from .drafters import Drafter
from .session import Session
from .stats import Stats
from .tree import Tree, TreeShape
from .verification import Chooser

PLAIN = TreeShape(size=1, depth=0, top_k=1)


class ShapeController(Protocol):
    """Decides from pass to pass how large a tree to draft, and how much of it to verify."""

    def restart(self) -> None:
        """Another text begins than the last pass was of."""

    def choose(self, levels: int) -> TreeShape:
        """The shape to draft for the next pass, of at most so many levels; size 1 or no level: plain decoding."""

    def cut(self, tree: Tree) -> Tree:
        """What of the drafted tree to verify: its first nodes."""

    def observe(self, tree: Tree | None, text: list[int]) -> None:
        """What came of it: the whole tree that was drafted, if one was, and the root with the drafts accepted behind
        it."""


class FixedShape:
    """A controller that always chooses the same shape."""

    def __init__(self, shape: TreeShape) -> None:
        self.shape = shape

    def restart(self) -> None:
        pass

    def choose(self, levels: int) -> TreeShape:
        return self.shape.at_most(levels)

    def cut(self, tree: Tree) -> Tree:
        return tree

    def observe(self, tree: Tree | None, text: list[int]) -> None:
        pass


def fixed_shape(size: int, drafter: Drafter) -> TreeShape:
    """A sensible shape of ``size`` nodes for ``drafter``."""
    return TreeShape(size, min(size - 1, size.bit_length()) if drafter.by_level else size - 1, top_k=10)


def _drafted(drafter: Drafter, root: int, shape: TreeShape) -> Tree:
    """What ``drafter`` proposes. Raises ValueError for a tree that ``shape`` does not allow."""
    tree = drafter.draft(root, shape)
    if (tree.tokens[0] != root or len(tree) > shape.size
            or (len(tree) - 1 > shape.depth and max(tree.levels) > shape.depth)):
        raise ValueError(f"drafter {drafter.name}: expected at most {shape.size} nodes and {shape.depth} levels below "
                         f"the root {root}, found {len(tree)} nodes and {max(tree.levels)} levels below the root "
                         f"{tree.tokens[0]}")
    return tree


def advance(session: Session, root: int, limit: int, sample: Chooser, stop_ids: AbstractSet[int],
            controller: ShapeController, stats: Stats) -> list[int]:
    """The tokens that one pass adds behind ``root``, the token chosen last: at least one, at most ``limit``, drawn as
    plain decoding draws them (``verification.accept``), the last one possibly of ``stop_ids``.

    The session, which has room for ``limit`` tokens and the root, then holds everything but the last of them. Where
    the drafter has nothing to propose, or one token is wanted, the pass is a plain step. Raises ValueError when the
    drafter proposes a tree that it was not asked for.
    """
    start = perf_counter()
    shape = controller.choose(limit - 1)  # a path of d nodes below the root gives d + 1 tokens
    drafted = tree = None
    if shape.size > 1 and shape.depth:
        drafted = _drafted(session.drafter, root, shape)
        tree = controller.cut(drafted)
        stats.drafted += len(drafted) - 1
    kernel = session.accept_kernel
    middle, chosen = perf_counter(), kernel.seconds if kernel else 0.0
    stats.draft_seconds += middle - start
    if tree is None or len(tree) == 1:
        logits = session.step(root)
        session.wait()
        verified = perf_counter() - middle
        tokens = [sample(logits, session.history)]
    else:
        output = session.tree(tree.tokens, tree.parents)
        session.wait()
        verified = perf_counter() - middle
        path, tokens = sample.accept(tree, output.logits, session.history, stop_ids)
        start = perf_counter()
        session.commit(path)
        session.wait()
        verified += perf_counter() - start
        stats.add_scores(len(tree) - 1, output.layer_scores)
    stats.verify_seconds += verified + (kernel.seconds - chosen if kernel else 0.0)
    stats.accept_lengths.append(len(tokens))
    start = perf_counter()
    controller.observe(drafted, [root, *tokens[:-1]])
    stats.draft_seconds += perf_counter() - start
    return tokens
