"""How large a tree to draft and to verify: the shape that makes the most tokens per second, or plain decoding.

*Estimate.* What drafts bring is judged in hindsight: verification never changes the text, so the tokens decoded after
a tree was drafted tell its path through the text, verified or not. A tree's nodes are in falling order of score, so
its first n nodes of at most d levels are the tree of that smaller shape, and one tree tells what every shape inside it
would have brought: as many tokens as the path has nodes among those n, the root included. For each shape the
controller keeps what it brings and costs beyond the one inside it, averaged over the trees that held both; each tree
counts 1/MEMORY less for every later one.

*Decision.* The shape with the most expected tokens per second (of the cost table), counting in the passes for which
the drafter had nothing to offer. Plain decoding is one of the shapes. Before anything is known, a draft is taken to be
right with probability PRIOR on each level, and a wider tree to bring nothing more; the first FIRST drafts speculate
even so, unless the drafter had nothing to offer PATIENCE times before.

*Exploration.* More is drafted than verified: up to GROW times the nodes, always by a draft model, for which they cost
little, and else in the first FIRST drafts and in every PROBE-th; these are also one level deeper than decided.

*Retry.* While plain decoding wins, a tree is drafted now and then, of which nothing is verified: twice after WAIT
tokens, then after twice as many each time, MAX_WAIT at most. Success, speculation ahead again, resets the wait.

What is drafted only to learn, and asking in vain, may take SHARE of plain decoding's time, whatever the counts say (but
for the FIRST).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from .cost_table import CostTable
from .tree import Tree, TreeShape

MEMORY = 64
PRIOR, PRIOR_WEIGHT = 0.5, 8  # the latter in trees
FIRST, PATIENCE, PROBE, GROW = 3, 6, 4, 4
WAIT, MAX_WAIT = 2, 16
SHARE = 0.01
HOPE, TEXT = 0.9, 256
TOP_K = 10
_FADE = 1 - 1 / MEMORY


def default_shapes(costs: CostTable, max_size: int = 64) -> tuple[TreeShape, ...]:
    """Plain decoding and every shape that would pay if each level were right with probability HOPE, so well that over
    TEXT tokens it saves more than the FIRST drafts cost: the sizes of the cost table, with the depths it knows, or with
    all levels where they cost nothing of their own. A shape comes after those inside it."""
    shapes = [TreeShape(1, 0, TOP_K)]
    plain = costs.seconds_for(shapes[0])
    for size in costs.nodes[1:]:
        deepest = min(size - 1, len(costs.draft_seconds) or size - 1)
        for depth in range(1 if costs.draft_seconds else deepest, deepest + 1):
            shape = TreeShape(size, depth, TOP_K)
            tokens = sum(HOPE**level for level in range(depth + 1))
            cost = costs.seconds_for(shape)
            if size <= max_size and TEXT * (plain - cost / tokens) > FIRST * cost:
                shapes.append(shape)
    return tuple(shapes)


def counterfactuals(levels: Sequence[int], path: Sequence[int], shapes: Sequence[TreeShape]) -> list[tuple[int, int]]:
    """For each shape the tokens that its part of a tree brings, and the nodes of that part.

    ``levels`` of the tree's nodes, in falling order of score; ``path``: those that the text takes, from the root on."""
    deepest = max(levels)
    parts: dict[int, tuple[Sequence[int], int]] = {deepest: (path, len(levels))}
    results = []
    for shape in shapes:
        # The first n nodes are at most n - 1 levels deep.
        depth = deepest if shape.depth >= min(deepest, shape.size - 1) else shape.depth
        if depth not in parts:
            kept = [node for node, level in enumerate(levels) if level <= depth]
            parts[depth] = [place for place, node in enumerate(kept) if node in path], len(kept)
        places, nodes = parts[depth]
        results.append((bisect_left(places, shape.size), min(shape.size, nodes)))
    return results


def fastest(tokens: Sequence[float], seconds: Sequence[float], idle: float = 0.0, idle_seconds: float = 0.0) -> int:
    """The index with the most tokens per second, of equals the first. The first is plain decoding; a pass of any other,
    of ``tokens`` in ``seconds``, comes with ``idle`` tokens of other passes in ``idle_seconds``."""
    rates = [tokens[0] / seconds[0], *((count + idle) / (time + idle_seconds)
                                       for count, time in zip(tokens[1:], seconds[1:]))]
    return rates.index(max(rates))


@dataclass
class _Gain:
    """What a shape brings and costs beyond the one inside it: sums over ``weight`` trees, older ones faded."""

    tokens: float
    seconds: float
    weight: float

    def fade(self, factor: float) -> None:
        self.tokens *= factor
        self.seconds *= factor
        self.weight *= factor


@dataclass
class _Draft:
    """A tree that was drafted as ``shape``, and its path through the text as far as the text is known."""

    tree: Tree
    shape: TreeShape
    path: list[int]

    def follow(self, tokens: Sequence[int]) -> bool:
        """Whether the text, going on with ``tokens``, may still be in the tree."""
        for token in tokens:
            node = self.tree.child(self.path[-1], token)
            if node is None:
                return False
            self.path.append(node)
        return True


class Controller:
    """For every pass: draft a tree of shape ``choose()`` (none for size 1), verify ``cut(tree)``, and report the whole
    tree and the accepted path to ``observe``."""

    def __init__(self, costs: CostTable, shapes: Sequence[TreeShape] | None = None) -> None:
        """``shapes``: the first for plain decoding, each after those inside it; ``default_shapes`` without."""
        self._costs = costs
        self._shapes = tuple(shapes) if shapes else default_shapes(costs)
        self._inner = [max((i for i, inner in enumerate(self._shapes[:index])
                            if inner.size <= shape.size and inner.depth <= shape.depth), default=0)
                       for index, shape in enumerate(self._shapes)]
        self._gains = [self._prior(shape, self._shapes[inner]) for shape, inner in zip(self._shapes, self._inner)]
        self._drafting = [costs.drafting(shape.depth) for shape in self._shapes]
        self._plain = costs.seconds_for(self._shapes[0])
        self._largest = max(shape.size for shape in self._shapes)
        self._deepest = max(shape.depth for shape in self._shapes)
        self._best = self._candidate = 0  # of all shapes, and of those that speculate
        self._asked = self._shapes[0]
        self._open: list[_Draft] = []  # whose paths may go on
        self._drafted = self._vain = 0
        # Passes for which the drafter had a tree to offer, and had none, faded as the gains are.
        self._offers = self._idle = 0.0
        self._missed = 0  # plain passes since a tree was learnt from
        self._budget, self._income = 0.0, SHARE * self._plain  # seconds, and those for every pass
        self._wait = self._next_wait = WAIT
        self._asking = costs.try_seconds  # what trying again takes beside a plain pass
        self._decide()

    def restart(self) -> None:
        """Another text begins: what the trees drafted last would have brought is not known."""
        self._open.clear()

    def choose(self, levels: int) -> TreeShape:
        """The shape to draft for the next pass, of at most so many levels."""
        if self._best:
            shape = self._speculate()
        elif self._wait > 0 or self._asking > self._budget:  # as for most of a text that drafts do not suit
            shape = self._shapes[0]
        else:
            candidate = self._shapes[self._candidate]
            shape = self._grown(candidate, candidate.depth)
        self._asked = shape.at_most(levels)
        return self._asked

    def cut(self, tree: Tree) -> Tree:
        """What of a drafted tree to verify."""
        return tree.first(self._shapes[self._best].size)

    def observe(self, tree: Tree | None, text: Sequence[int]) -> None:
        """A pass verified ``cut(tree)``, if one was drafted, and accepted ``text``: the root and drafts behind it."""
        self._budget += self._income
        if not self._best:
            self._wait -= 1
            self._missed += 1
            if tree is None and not self._open:
                return
        closed = [draft for draft in self._open if not draft.follow(text)]
        if tree is None:
            pass
        elif len(tree) > 1:
            draft = _Draft(tree, self._asked, [0])
            draft.follow(text[1:])
            self._offers += 1
            self._note(draft)
        else:
            self._idle += 1
            self._vain += 1
            self._budget -= 0.0 if self._best else self._costs.try_seconds
        for draft in closed:
            self._open.remove(draft)
            self._learn(draft)
        if closed or self._best and tree is not None:
            self._decide()

    @property
    def _first(self) -> bool:
        return self._drafted < FIRST and self._vain < PATIENCE

    def _speculate(self) -> TreeShape:
        shape = self._shapes[self._best]
        first, probe = self._first, self._drafted % PROBE == 0
        if not (first or probe or self._costs.draft_seconds):
            return shape
        deeper = min(shape.depth + 1, self._deepest)
        pays = first or (probe and self._extra(deeper) <= self._budget)
        return self._grown(shape, deeper if pays else shape.depth)

    def _grown(self, shape: TreeShape, depth: int) -> TreeShape:
        size = min(GROW * shape.size, self._largest)
        return TreeShape(size, depth if self._costs.draft_seconds else size - 1, TOP_K)

    def _extra(self, depth: int) -> float:
        """Seconds of drafting more levels than the decided shape has, and of asking where that is plain decoding."""
        asking = 0.0 if self._best else self._costs.try_seconds
        return asking + self._costs.drafting(depth) - self._costs.drafting(self._shapes[self._best].depth)

    def _note(self, draft: _Draft) -> None:
        self._open.append(draft)
        self._budget -= self._extra(draft.shape.depth)
        self._drafted += 1
        if self._best == 0:
            self._wait, self._next_wait = self._next_wait, min(2 * self._next_wait, MAX_WAIT)

    def _learn(self, draft: _Draft) -> None:
        levels = draft.tree.levels
        whole = len(levels) < draft.shape.size  # the drafter had no more to offer
        ended = max(levels) < draft.shape.depth
        known = [(whole or shape.size <= len(levels)) and (ended or shape.depth <= draft.shape.depth)
                 for shape in self._shapes]
        results = counterfactuals(levels, draft.path, self._shapes)
        seconds = [self._costs.by_nodes[nodes] + drafting for (_, nodes), drafting in zip(results, self._drafting)]
        missed = _FADE**self._missed
        for index, (gain, inner) in enumerate(zip(self._gains, self._inner)):
            if known[index]:
                gain.fade(missed * _FADE)
                gain.tokens += results[index][0] - results[inner][0]
                gain.seconds += seconds[index] - seconds[inner]
                gain.weight += 1
            else:
                gain.fade(missed)
        self._offers *= _FADE
        self._idle *= _FADE
        self._missed = 0

    def _prior(self, shape: TreeShape, inner: TreeShape) -> _Gain:
        levels = range(min(inner.depth, inner.size - 1) + 1, min(shape.depth, shape.size - 1) + 1)
        seconds = self._costs.seconds_for(shape) - self._costs.seconds_for(inner)
        return _Gain(PRIOR_WEIGHT * sum(PRIOR**level for level in levels), PRIOR_WEIGHT * seconds, PRIOR_WEIGHT)

    def _decide(self) -> None:
        tokens, seconds = [1.0], [self._plain]
        for gain, inner in zip(self._gains[1:], self._inner[1:]):
            tokens.append(tokens[inner] + gain.tokens / gain.weight)
            seconds.append(seconds[inner] + gain.seconds / gain.weight)
        if len(tokens) == 1:
            return
        idle = self._idle / max(self._offers, 1.0)
        idle = idle, idle * (self._plain + self._costs.try_seconds)
        self._candidate = fastest([0.0, *tokens[1:]], seconds, *idle)
        self._best = self._candidate if self._first else fastest(tokens, seconds, *idle)
        if self._best:
            self._wait = self._next_wait = WAIT
        else:
            self._asking = self._extra(self._shapes[self._candidate].depth)
