"""Which of the drafted tokens the target model keeps: lossless verification of a token tree."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol

import numpy as np

from .devices import Logits, Row
from .tree import Tree

Sample = Callable[[np.ndarray | Row, Iterable[int]], int]


class Chooser(Protocol):
    """Chooses tokens, keeping what state it needs."""

    def __call__(self, logits: np.ndarray | Row, history: Iterable[int]) -> int:
        """The next token for logits float32 [V] behind ``history``."""

    def accept(self, tree: Tree, logits: Logits | np.ndarray, history: Sequence[int],
               stop_ids: AbstractSet[int]) -> tuple[list[int], list[int]]:
        """As the function ``accept`` has it."""


def accept(tree: Tree, logits: Sequence[np.ndarray | Row], sample: Sample, history: Sequence[int] = (),
           stop_ids: Collection[int] = ()) -> tuple[list[int], list[int]]:
    """The accepted path (nodes from the root on) and the new tokens, one drawn at each of its nodes.

    ``logits`` float32 [len(tree), V]: the target's, at each node. ``sample(logits [V], history)`` draws a token as in
    plain decoding. ``history``: the tokens before the root; what is drawn at a node has the path to it before it too,
    so a repetition penalty counts what it would count without drafts. Drawing ends with a token of ``stop_ids``.

    The rule: at each node, from the root on, draw the next token from the target's own distribution p; where a child
    carries it go on there, else stop. The last token drawn, the bonus token, is the next root.

    This is multi-branch speculative sampling (SpecInfer, arXiv 2305.09781, section 4.3; for one branch Leviathan et
    al., arXiv 2211.17192; its use on the trees of EAGLE-2, arXiv 2406.16858) for children that are given rather than
    drawn: child x has draft probability q(x) = 1. The rule there accepts x with probability min(1, p(x) / q(x)) = p(x);
    after a rejection the target's distribution becomes norm(max(0, p - q)), that is p without x, normalised, and the
    next sibling is tried with it; when all are rejected the token is drawn from what is left. So child i is taken with
    probability prod_{j<i} (1 - p_j / (1 - p_1 - ... - p_{j-1})) * p_i / (1 - p_1 - ... - p_{i-1}) = p_i, and any
    other token t with p(t): one draw from p decides all of it. Every token thus follows the target's distribution
    given those before it, and since it takes the very draw of plain decoding, the same seed gives the same text.
    """
    node, path, drawn = 0, [0], []
    while True:
        token = sample(logits[node], itertools.chain(history, tree.tokens[:1], drawn))
        drawn.append(token)
        child = None if token in stop_ids else tree.child(node, token)
        if child is None:
            return path, drawn
        path.append(child)
        node = child
