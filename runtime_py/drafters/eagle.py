"""Drafting with the artifact's EAGLE model: dynamic trees (EAGLE-2, arXiv 2406.16858)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..artifact import MASK_BITS, Artifact
from ..library import Drafted, Library, States
from ..tree import Tree, TreeShape, build_tree

_HELD = 256  # passes whose states may wait on the device: each takes an allocation, of which drivers have thousands


class EagleDrafter:
    """One session's draft cache, and the trees that grow from it.

    Row i of the cache is the pair of token i + 1 and the model's state h_i before it, at position i. ``extend`` only
    remembers tokens and states; rows that are missing are computed at the next ``draft``, with the root's own. Nodes of
    a tree are tried in the slots behind, with the draft's states instead of the model's, and are forgotten with it.
    """

    name, by_level = "eagle", True

    def __init__(self, artifact: Artifact, library: Library) -> None:
        if artifact.draft is None:
            raise ValueError(f"{artifact.path} has no draft model")
        self._library, self._top_k = library, min(artifact.draft.top_k, artifact.prefill_chunk_size)
        self._window, self._chunk = artifact.context_window_size, artifact.prefill_chunk_size
        self._caches = library.new_draft_caches()
        self._tokens: list[int] = []  # of the session
        # Kept for a rollback, behind which a row is missing. The system gives memory only to rows that are written.
        self._states = np.empty((self._window, artifact.config.hidden_size), np.float32)
        self._unseen: list[tuple[int, States | np.ndarray]] = []  # positions and states that are not there yet
        self._steps = np.arange(self._chunk, dtype=np.int32)
        self._cached = 0  # rows in the cache
        self._root = -1  # token of the row behind the session's last token, once there is one

    def extend(self, tokens: Sequence[int], hidden: States | np.ndarray | None) -> None:
        """See ``Drafter``. Raises ValueError without ``hidden``."""
        if hidden is None:
            raise ValueError("an EAGLE draft continues the model's hidden states, found none")
        length = len(self._tokens)
        if self._cached == length > 0 and tokens[0] != self._root:
            self._cached -= 1
        self._unseen.append((length, hidden))
        self._tokens.extend(tokens)
        if len(self._unseen) == _HELD:
            self._look()

    def rollback(self, length: int) -> None:
        """See ``Drafter``."""
        # For memory alone: states are looked at in order, so what is behind ``length`` is overwritten before it counts.
        self._unseen = [(position, hidden) for position, hidden in self._unseen if position < length]
        del self._tokens[length:]
        self._cached = min(self._cached, max(length - 1, 0))

    def _look(self) -> None:
        for position, hidden in self._unseen:
            self._states[position:position + len(hidden)] = hidden
        self._unseen.clear()

    def draft(self, root: int, shape: TreeShape) -> Tree:
        """See ``Drafter``. Every level expands the best nodes of the one above, as far as they are still among the best
        ``shape.size - 1``: no others, and no descendants of others, get into the tree. At most 64 are expanded."""
        past = len(self._tokens)
        depth = min(shape.depth, self._window - past - 1)  # the deepest node must be inside the window
        if shape.size == 1 or depth < 1 or not past:
            return Tree([root], [-1])
        top_k = min(shape.top_k, self._top_k)
        candidates = _Candidates(shape.size - 1, top_k)
        drafted = self._feed(root)
        candidates.add([-1], drafted)
        states, masks, used = drafted.hidden[-1:], [0], 0  # of the nodes expanded last
        for level in range(1, depth):
            nodes = candidates.to_expand(min(top_k, MASK_BITS - used))
            count = len(nodes)
            if not count:
                break
            rows = [candidates.rows[node] for node in nodes]  # of each node's parent among those
            masks = [masks[row] | 1 << used + i for i, row in enumerate(rows)]
            drafted = self._library.draft(
                np.array([candidates.tokens[node] for node in nodes], np.int32), states[rows],
                np.full(count, past + level - 1, np.int32), np.full(count, past, np.int32),
                np.array(masks, "<u8").view("<i4").reshape(count, 2), self._steps[:count], past, used, self._caches)
            candidates.add(nodes, drafted)
            states, used = drafted.hidden, used + count
        return build_tree(root, candidates.tokens, candidates.parents, candidates.scores, shape.size)

    def _feed(self, root: int) -> Drafted:
        """Compute the rows that are missing and the one of ``root`` behind them; what follows it."""
        self._look()
        past = len(self._tokens)
        start = min(self._cached, past - 1)
        tokens = np.array([*self._tokens[start + 1:], root], np.int32)
        for first in range(start, past, self._chunk):
            count = min(self._chunk, past - first)
            positions = first + self._steps[:count]
            drafted = self._library.draft(
                tokens[first - start:first - start + count], self._states[first:first + count], positions,
                positions + 1, np.zeros((count, 2), np.int32), self._steps[count - 1:count], first, 0, self._caches)
        self._cached, self._root = past, root
        return drafted


class _Candidates:
    """The nodes tried so far that may be among the ``kept`` best in the end: lists of their ``tokens``, ``parents``
    (-1: the root), cumulative log-probabilities and ``rows``: which of the nodes expanded for it is its parent."""

    def __init__(self, kept: int, top_k: int) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.scores: list[float] = []
        self.rows: list[int] = []
        self._kept, self._top_k = kept, top_k
        self._first = 0  # of the last level
        self._best: list[int] = []

    def add(self, nodes: Sequence[int], drafted: Drafted) -> None:
        """Add a level: the most likely tokens behind each of ``nodes``, rows of ``drafted``."""
        self._first = len(self.tokens)
        lowest = self.scores[self._best[-1]] if len(self._best) == self._kept else -math.inf
        named, log_probs = drafted.tokens.tolist(), drafted.log_probs.tolist()
        for row, node in enumerate(nodes):
            score = self.scores[node] if node >= 0 else 0.0
            for token, log_prob in zip(named[row][:self._top_k], log_probs[row]):
                if not score + log_prob > lowest:  # nor do those behind it; damaged weights may give NaN
                    break
                self.tokens.append(token)
                self.parents.append(node)
                self.scores.append(score + log_prob)
                self.rows.append(row)
        self._best = sorted(range(len(self.scores)), key=lambda node: -self.scores[node])[:self._kept]

    def to_expand(self, limit: int) -> list[int]:
        """The ``limit`` best of the last level, as far as they are among the best of all."""
        return [node for node in self._best if node >= self._first][:limit]
