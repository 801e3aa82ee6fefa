"""Drafting with the artifact's EAGLE model: dynamic trees (EAGLE-2, arXiv 2406.16858)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..artifact import MASK_BITS, Artifact
from ..library import Drafted, Library
from ..tree import Tree, TreeShape, build_tree


class EagleDrafter:
    """One session's draft cache, and the trees that grow from it.

    Row i of the cache is the pair of token i + 1 and the model's state h_i before it, at position i. ``extend`` only
    remembers tokens and states; rows that are missing are computed at the next ``draft``, with the root's own. Nodes of
    a tree are tried in the slots behind, with the draft's states instead of the model's, and are forgotten with it.
    """

    name = "eagle"

    def __init__(self, artifact: Artifact, library: Library) -> None:
        if artifact.draft is None:
            raise ValueError(f"{artifact.path} has no draft model")
        self._library, self._top_k = library, min(artifact.draft.top_k, artifact.prefill_chunk_size)
        self._window, self._chunk = artifact.context_window_size, artifact.prefill_chunk_size
        self._caches = library.new_draft_caches()
        self._tokens: list[int] = []  # of the session
        # Kept for a rollback, behind which a row is missing. The system gives memory only to rows that are written.
        self._states = np.empty((self._window, artifact.config.hidden_size), np.float32)
        self._cached = 0  # rows in the cache
        self._root = -1  # token of the row behind the session's last token, once there is one

    def extend(self, tokens: Sequence[int], hidden: np.ndarray | None) -> None:
        """See ``Drafter``. Raises ValueError without ``hidden``."""
        if hidden is None:
            raise ValueError("an EAGLE draft continues the model's hidden states, found none")
        length = len(self._tokens)
        if self._cached == length > 0 and tokens[0] != self._root:
            self._cached -= 1
        self._states[length:length + len(tokens)] = hidden
        self._tokens.extend(tokens)

    def rollback(self, length: int) -> None:
        """See ``Drafter``."""
        del self._tokens[length:]
        self._cached = min(self._cached, max(length - 1, 0))

    def draft(self, root: int, shape: TreeShape) -> Tree:
        """See ``Drafter``. Every level expands the best nodes of the one above, as far as they are still among the best
        ``shape.size - 1``: no others, and no descendants of others, get into the tree. At most 64 are expanded."""
        past = len(self._tokens)
        depth = min(shape.depth, self._window - past - 1)  # the deepest node must be inside the window
        if shape.size == 1 or depth < 1 or not past:
            return Tree([root], [-1])
        drafted, top_k = self._feed(root), min(shape.top_k, self._top_k)
        candidates = _Candidates(drafted, top_k)
        states, masks, used = drafted.hidden[-1:], np.zeros(1, "<u8"), 0  # of the nodes expanded last
        for level in range(1, depth):
            nodes, parents = candidates.to_expand(shape.size - 1, min(top_k, MASK_BITS - used))
            if not len(nodes):
                break
            masks = masks[parents] | np.uint64(1) << np.arange(used, used + len(nodes), dtype=np.uint64)
            drafted = self._library.draft(
                candidates.tokens[nodes], states[parents], np.full(len(nodes), past + level - 1, np.int32),
                np.full(len(nodes), past, np.int32), masks.view("<i4").reshape(-1, 2),
                np.arange(len(nodes), dtype=np.int32), past, used, self._caches)
            candidates.expand(nodes, drafted)
            states, used = drafted.hidden, used + len(nodes)
        return candidates.tree(root, shape.size)

    def _feed(self, root: int) -> Drafted:
        """Compute the rows that are missing and the one of ``root`` behind them; what follows it."""
        past = len(self._tokens)
        start = min(self._cached, past - 1)
        tokens = np.array([*self._tokens[start + 1:], root], np.int32)
        for first in range(start, past, self._chunk):
            positions = np.arange(first, min(first + self._chunk, past), dtype=np.int32)
            drafted = self._library.draft(
                tokens[positions - start], self._states[positions], positions, positions + 1,
                np.zeros((len(positions), 2), np.int32), np.array([len(positions) - 1], np.int32), first, 0,
                self._caches)
        self._cached, self._root = past, root
        return drafted


class _Candidates:
    """Every node tried so far: its token, its parent among them (-1: the root) and its cumulative log-probability.
    The last level's begin at ``first``, ``top_k`` for each node that was expanded last."""

    def __init__(self, drafted: Drafted, top_k: int) -> None:
        self.tokens, self._parents, self._scores = np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0)
        self._first, self._top_k = 0, top_k
        self._add(np.array([-1]), np.zeros(1), drafted)

    def expand(self, nodes: np.ndarray, drafted: Drafted) -> None:
        """Add what follows ``nodes``, a level further down."""
        self._add(nodes, self._scores[nodes], drafted)

    def to_expand(self, kept: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """The ``limit`` best of the last level, as far as they are among the ``kept`` best of all; and which of the
        nodes expanded last is the parent of each."""
        best = self._best(kept)
        nodes = best[best >= self._first][:limit]
        return nodes, (nodes - self._first) // self._top_k

    def tree(self, root: int, size: int) -> Tree:
        """The best ``size - 1`` behind ``root``."""
        kept = np.sort(self._best(size - 1))  # with a node, its parent: that scores no less and came earlier
        parents = self._parents[kept]
        places = np.where(parents < 0, -1, np.searchsorted(kept, parents))
        return build_tree(root, self.tokens[kept].tolist(), places.tolist(), self._scores[kept].tolist(), size)

    def _best(self, count: int) -> np.ndarray:
        return np.argsort(-self._scores, kind="stable")[:count]

    def _add(self, parents: np.ndarray, scores: np.ndarray, drafted: Drafted) -> None:
        self._first = len(self.tokens)
        log_probs = drafted.log_probs[:, :self._top_k].astype(np.float64)
        log_probs[~(log_probs <= 0)] = -np.inf  # of damaged weights: it must not outrank its parent
        self.tokens = np.append(self.tokens, drafted.tokens[:, :self._top_k])
        self._parents = np.append(self._parents, np.repeat(parents, self._top_k))
        self._scores = np.append(self._scores, scores[:, None] + log_probs)
